"""`hero run --retries N`: a parent process that starts the driver again when another attempt can help.

    ended by a signal, or exit code 1, 4, 5               ->  start again, at most N times
    exit code 0, 2, 3, 130, or after SIGTERM or SIGINT    ->  end with the exit code of the driver

The run directory holds all progress, so every start has the same command. The supervisor loads nothing
of the run: what ends a driver (memory, a library) does not reach it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType

from common.errors import INTERRUPTED, RETRIED
from common.plugins import child_environment

# A process that signal N ended has exit code 128 + N, as in shells.
SIGNAL_BASE = 128
PR_SET_PDEATHSIG = 1
"""See prctl(2)."""
# Signals that follow the first one this soon are the same request to stop.
REPEAT_SECONDS = 2.0


class Supervisor:
    """Runs one command until it ends with a code that is not retried, or no retries are left."""

    def __init__(self, command: Sequence[str], retries: int, report: Callable[[str], None]) -> None:
        """`report` prints one line before each new start."""
        self._command, self._retries, self._report = list(command), retries, report
        self._driver: subprocess.Popen[bytes] | None = None
        self._stopping = False

    def run(self) -> int:
        """Returns the exit code of the last driver. SIGTERM and SIGINT are forwarded to it and end the
        run."""
        for number in (signal.SIGTERM, signal.SIGINT):
            _handle(number, self._forward)
        code = self._run_driver()
        for attempt in range(1, self._retries + 1):
            if self._stopping or not is_retried(code):
                break
            self._report(f"the driver ended with exit code {code}; retry {attempt} of {self._retries}")
            code = self._run_driver()
        return code

    def _run_driver(self) -> int:
        # In the same process group as this process: Ray kills a job by its group.
        # By this environment, a file cluster.py in the working directory does not run in place of ours.
        environment = {**os.environ, **child_environment()}
        self._driver = subprocess.Popen(self._command, env=environment, preexec_fn=_end_with_parent)
        if self._stopping:  # the signal came before there was a driver to forward it to
            self._driver.terminate()
        code = self._driver.wait()
        if code < 0:  # how Popen reports a signal
            return SIGNAL_BASE - code
        return code

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        self._stopping = True
        if self._driver is not None and self._driver.poll() is None:
            self._driver.send_signal(number)


def _end_with_parent() -> None:
    """Has the kernel send SIGTERM to this process when its parent is gone: a driver that is left alone
    holds the run's lock, and whoever starts the same command again would be refused."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def is_retried(code: int) -> bool:
    """Whether another attempt can help after this exit code."""
    by_signal = code > SIGNAL_BASE and code != INTERRUPTED
    return code in RETRIED or by_signal


class _Interrupt:
    """Raises KeyboardInterrupt, but not for a signal that soon follows another one."""

    def __init__(self) -> None:
        self._last = -REPEAT_SECONDS

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        repeated = now - self._last < REPEAT_SECONDS
        self._last = now
        if not repeated:
            raise KeyboardInterrupt


def interrupt_on_signals() -> None:
    """Has SIGTERM end the driver as Ctrl-C does: KeyboardInterrupt, so that W&B runs are closed.

    The driver may get one request twice, directly (a terminal and Ray signal all processes of a job) and
    from its supervisor. A repeat would interrupt the shutdown that the first one began, so it is ignored.
    """
    interrupt = _Interrupt()
    for number in (signal.SIGTERM, signal.SIGINT):
        _handle(number, interrupt)


def _handle(number: int, handler: Callable[[int, FrameType | None], None]) -> None:
    # A shell's background job ignores SIGINT, which stays so.
    if signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, handler)
