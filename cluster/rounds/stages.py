"""Stages of a round as a process of their own, `hero run`, which has ended before people are waited for."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cluster.supervisor import Supervisor
from common.errors import INTERRUPTED, HeroError, UserError
from common.files import try_lock
from common.run_paths import RunPaths

PATIENCE_S = 90


class StageError(HeroError):
    """`hero run` of a round has failed, with this exit code; it has printed why."""

    def __init__(self, code: int, config: Path) -> None:
        super().__init__(
            f"`hero run {config}` ended with exit code {code} (its message is above); what is done stays, "
            "and the same command goes on from there"
        )
        self.exit_code = code


class StageProcess:
    """Runs the stages of a config up to one of them."""

    def __init__(self, retries: int, tell: Callable[[str], None]) -> None:
        self.retries, self.tell = retries, tell

    def __call__(self, config: Path, last: str) -> None:
        """Raises StageError, or KeyboardInterrupt if it was interrupted."""
        _wait_for_predecessor(config.parent)
        command = [sys.executable, "-m", "cluster.cli", "run", str(config), "--until", last]
        # The supervisor forwards signals while it is at work; afterwards they are the caller's again.
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            code = Supervisor(command, self.retries, self.tell).run()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code:
            raise StageError(code, config)


def _wait_for_predecessor(root: Path) -> None:
    """Until the stages of a killed `hero rounds` have ended in this directory, which takes seconds."""
    lock, deadline = RunPaths(root).lock, time.monotonic() + PATIENCE_S
    while lock.exists() and time.monotonic() < deadline:
        try:
            with try_lock(lock, "taken"):
                return
        except UserError:
            time.sleep(0.5)
