"""The process in which environments run: `python -m actors.environments.worker FD`, started by
`actors.environments.pool`.

A process of its own, so that an environment may hang, crash or leave without harm to the engine. Each
episode has an environment of its own, and each step runs in a thread. Imports neither torch nor vLLM, so
that another one starts soon.

    in   first (name, kwargs, registered creator, threads); then
         (episode, "reset", (seed, row)), (episode, "step", action) and (episode, "close", None)
    out  first ("ready", whether actions are messages) or ("unusable", reason);
         for each reset and step (episode, StepResult) or (episode, reason of the failure)
"""

from __future__ import annotations

import os
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import gymnasium

from actors.child_process import MAX_REASON_CHARACTERS, begin_child
from actors.environments.loading import Creator, load_environment, make
from actors.environments.messages import BadResultError, Messages, StepResult, checked_reset, checked_step
from common.errors import UserError
from common.plugins import describe_error


def main() -> None:
    connection = begin_child()
    name, kwargs, registered, threads = connection.recv()
    try:
        creator = load_environment(name, kwargs, registered)
        first = make(creator, name)
    except UserError as error:
        connection.send(("unusable", str(error)))
        return
    takes_messages = isinstance(getattr(first, "action_space", None), Messages)
    connection.send(("ready", takes_messages))
    worker = Worker(connection, creator, name, threads)
    worker.free.put(first)
    worker.serve()
    # Without waiting for steps that hang.
    os._exit(0)


class Worker:
    """The environments of the episodes that this process has."""

    def __init__(self, connection: Connection, creator: Creator, name: str, threads: int) -> None:
        self._connection, self._creator, self._name = connection, creator, name
        self._sending = threading.Lock()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="environment")
        self._environments: dict[int, gymnasium.Env[Any, Any]] = {}
        self._running: set[int] = set()
        """Episodes whose reset or step runs now."""
        self.free: queue.SimpleQueue[gymnasium.Env[Any, Any]] = queue.SimpleQueue()
        """Environments of episodes that are over; `reset` begins another one in them."""

    def serve(self) -> None:
        """Until the engine's end of the connection is closed."""
        while True:
            try:
                episode, method, argument = self._connection.recv()
            except (EOFError, OSError):
                return
            if method == "close":
                environment = self._environments.pop(episode, None)
                # A step that still runs would disturb the next episode.
                if environment is not None and episode not in self._running:
                    self.free.put(environment)
            else:
                self._running.add(episode)
                self._pool.submit(self._answer, episode, method, argument)

    def _answer(self, episode: int, method: str, argument: Any) -> None:
        result: StepResult | str
        try:
            result = self._reset(episode, *argument) if method == "reset" else self._step(episode, argument)
        except BadResultError as error:
            self._environments.pop(episode, None)
            result = str(error)[:MAX_REASON_CHARACTERS]
        except BaseException as error:  # the user's code may raise anything, SystemExit too
            # Not used again: who knows in what state it is.
            self._environments.pop(episode, None)
            result = describe_error(error)[:MAX_REASON_CHARACTERS]
        self._running.discard(episode)
        with self._sending:
            try:
                self._connection.send((episode, result))
            except (TypeError, ValueError, AttributeError) as error:  # an observation that cannot be pickled
                self._connection.send((episode, describe_error(error)[:MAX_REASON_CHARACTERS]))

    def _reset(self, episode: int, seed: int, row: dict[str, Any] | None) -> StepResult:
        try:
            environment = self.free.get_nowait()
        except queue.Empty:
            environment = make(self._creator, self._name)
        self._environments[episode] = environment
        return checked_reset(environment.reset(seed=seed, options={"row": row}))

    def _step(self, episode: int, action: Any) -> StepResult:
        return checked_step(self._environments[episode].step(action))


if __name__ == "__main__":
    main()
