"""A worker process as the engine's process sees it: started, asked, killed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from actors.child_process import LOAD_TIMEOUT_S, ChildProcess
from actors.environments.config import EnvironmentConfig
from actors.environments.messages import StepResult
from common.errors import UserError

Answer = tuple[int, StepResult | str]
"""(episode, result or reason of the failure)."""


class WorkerProcess(ChildProcess):
    """Starts at once and loads the environment while others do something else."""

    def __init__(self, config: EnvironmentConfig, registered: bytes | None = None) -> None:
        self.name = config.name
        super().__init__("actors.environments.worker")
        self.connection.send((config.name, config.kwargs, registered, config.threads))
        self._load_until = time.monotonic() + LOAD_TIMEOUT_S
        self.takes_messages: bool | None = None
        """Whether actions are messages; None while it is not known yet."""
        self.deadlines: dict[int, float] = {}
        """Of the steps that it works on, by episode (time.monotonic)."""

    def wait_ready(self) -> None:
        """Raises UserError if the environment cannot be loaded."""
        while self.takes_messages is None:
            if not self.connection.poll(max(0.0, self._load_until - time.monotonic())):
                self.kill()
                raise UserError(f"environment.name={self.name}: not loaded within {LOAD_TIMEOUT_S:g} s")
            try:
                self._on_ready(self.connection.recv())
            except (EOFError, OSError):
                raise UserError(f"environment.name={self.name}: {self.end()} while it was loaded") from None

    def ask(self, episode: int, method: str, argument: Any, deadline: float | None) -> None:
        """Sends a request; one that is to be answered has a deadline. To a process that has died nothing is
        sent: `answers` says so."""
        if deadline is not None:
            self.deadlines[episode] = deadline
        with contextlib.suppress(OSError):
            self.connection.send((episode, method, argument))

    def answers(self) -> Iterator[Answer]:
        """What has come in. Raises EOFError, after the last answer, if the process has ended."""
        while not self.connection.closed and self.connection.poll():
            try:
                message = self.connection.recv()
            except OSError as error:
                raise EOFError from error
            if self.takes_messages is None:
                self._on_ready(message)
                continue
            self.deadlines.pop(message[0], None)
            yield message

    def _on_ready(self, message: tuple[str, Any]) -> None:
        kind, value = message
        if kind == "unusable":
            self.kill()
            raise UserError(value)
        self.takes_messages = value
