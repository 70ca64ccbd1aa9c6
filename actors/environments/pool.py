"""Environments of many episodes in a few worker processes, with deadlines.

    reset, step ─► waiting ─► worker process (a thread for each step) ─► poll
                      ▲            │ no answer by the deadline: it has timed out, and the process is killed
                      └── replay ──┤ the process has died: the episode whose step ran has failed
                                   └ all others go on in another process

An episode moves to another process by replay: the same reset and the same actions again. They must give
the same observations and rewards; an environment that gives others has lost the episode, which fails. If
several steps ran when a process died, nobody knows which of them ended it. Each of these episodes goes on
in a process that it has for itself, and fails if that one dies too.

`actors.environments.runner` calls it between two steps of the engine. One thread, no locks.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any, Literal

from actors.environments.config import EnvironmentConfig
from actors.environments.messages import StepResult
from actors.environments.worker_process import WorkerProcess


@dataclass(frozen=True)
class StepFailure:
    """Why a reset or step has no result."""

    kind: Literal["timed_out", "failed"]
    reason: str


Outcome = tuple[int, StepResult | StepFailure]
"""(episode, what its last reset or step gave)."""


@dataclass
class Session:
    """One episode as the pool knows it."""

    requests: list[tuple[str, Any]]
    """("reset", (seed, row)), then ("step", action) for each turn so far."""
    results: list[StepResult] = field(default_factory=list)
    """Of the requests, as far as they are known."""
    worker: WorkerProcess | None = None
    """That holds its environment."""
    done: int = 0
    """Requests that this worker has answered; fewer than `results` in a replay."""
    alone: bool = False
    """Whether its step ran when a worker died, beside others."""


class EnvironmentPool:
    """The worker processes of one rollout actor."""

    def __init__(
        self,
        config: EnvironmentConfig,
        registered: bytes | None = None,
        start: Callable[[EnvironmentConfig, bytes | None], WorkerProcess] = WorkerProcess,
    ) -> None:
        """`registered` is the creator from Ray's registry. `wait_ready` comes before the first episode."""
        self.config = config
        self._start = lambda: start(config, registered)
        self._workers = [self._start() for _ in range(config.workers)]
        self._single: dict[int, WorkerProcess] = {}
        """Processes of episodes that have one for themselves."""
        self._sessions: dict[int, Session] = {}
        self._waiting: deque[int] = deque()
        """Episodes with a request that no worker has got yet."""
        self._outcomes: list[Outcome] = []
        self.replaced = 0
        """Workers that died or were killed."""
        self.takes_messages = False
        """Whether actions are messages and not texts; known after `wait_ready`."""

    def wait_ready(self) -> None:
        """Waits until a worker has loaded the environment. Raises UserError if it cannot."""
        self._workers[0].wait_ready()
        self.takes_messages = bool(self._workers[0].takes_messages)

    @property
    def pids(self) -> list[int]:
        return [worker.pid for worker in self._all_workers()]

    @property
    def num_busy(self) -> int:
        """Resets and steps that have no outcome yet."""
        running = {episode for worker in self._all_workers() for episode in worker.deadlines}
        return len(running | set(self._waiting) & self._sessions.keys()) + len(self._outcomes)

    def reset(self, episode: int, seed: int, row: dict[str, Any] | None) -> None:
        """Begins an episode; `poll` brings the outcome."""
        self._sessions[episode] = Session([("reset", (seed, row))])
        self._waiting.append(episode)

    def step(self, episode: int, action: Any) -> None:
        """The next action of an episode; `poll` brings the outcome."""
        self._sessions[episode].requests.append(("step", action))
        self._waiting.append(episode)

    def forget(self, episode: int) -> None:
        """Ends an episode; what still runs of it has no outcome."""
        session = self._sessions.pop(episode, None)
        if session is None or session.worker is None:
            return
        single = self._single.pop(episode, None)
        if single is not None:
            single.kill()
        else:
            # The answer to a step that runs is ignored; its deadline still holds.
            session.worker.ask(episode, "close", None, None)

    def poll(self, seconds: float = 0.0) -> list[Outcome]:
        """Outcomes that are there; waits up to `seconds` for the first."""
        until = time.monotonic() + seconds
        while True:
            self._receive()
            self._check_deadlines()
            self._dispatch()
            if self._outcomes or time.monotonic() >= until or not self.num_busy:
                outcomes, self._outcomes = self._outcomes, []
                return outcomes
            wait([worker.connection for worker in self._all_workers()], self._pause(until))

    def close(self) -> None:
        """Kills all workers."""
        for worker in self._all_workers():
            worker.kill()
        self._workers, self._single = [], {}

    def _all_workers(self) -> list[WorkerProcess]:
        return [*self._workers, *self._single.values()]

    def _pause(self, until: float) -> float:
        """Seconds until something has to be done that no answer brings."""
        deadlines = [deadline for worker in self._all_workers() for deadline in worker.deadlines.values()]
        return max(0.0, min([until, *deadlines]) - time.monotonic())

    def _receive(self) -> None:
        for worker in self._all_workers():
            try:
                for episode, answer in worker.answers():
                    self._on_answer(episode, worker, answer)
            except EOFError:
                self._on_death(worker)

    def _on_answer(self, episode: int, worker: WorkerProcess, answer: StepResult | str) -> None:
        session = self._sessions.get(episode)
        if session is None or session.worker is not worker:
            return  # forgotten meanwhile
        if isinstance(answer, str):
            self._fail(episode, "failed", answer)
            return
        if session.done < len(session.results):
            if answer != session.results[session.done]:
                self._fail(
                    episode,
                    "failed",
                    "its worker was lost, and the same actions in another one gave another observation or "
                    "reward; an environment whose episodes are to survive must depend on its seed alone",
                )
                return
        else:
            session.results.append(answer)
            self._outcomes.append((episode, answer))
        session.done += 1
        if session.done < len(session.requests):
            self._waiting.append(episode)

    def _on_death(self, worker: WorkerProcess) -> None:
        running = [episode for episode in worker.deadlines if episode in self._sessions]
        reason = worker.end()
        for episode in running:
            if len(running) == 1 or self._sessions[episode].alone:
                self._fail(episode, "failed", reason)
            else:
                self._sessions[episode].alone = True
        self._replace(worker)

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        for worker in self._all_workers():
            late = [episode for episode, deadline in worker.deadlines.items() if deadline <= now]
            if not late:
                continue
            worker.kill()
            for episode in late:
                if episode in self._sessions:
                    limit = self.config.step_timeout_s
                    what = self._sessions[episode].requests[-1][0]
                    self._fail(
                        episode, "timed_out", f"{what} took longer than environment.step_timeout_s={limit:g}"
                    )
            self._replace(worker)

    def _fail(self, episode: int, kind: Literal["timed_out", "failed"], reason: str) -> None:
        self._outcomes.append((episode, StepFailure(kind, reason)))
        self.forget(episode)

    def _replace(self, worker: WorkerProcess) -> None:
        """Starts another process in place of one that is gone; its episodes are replayed when they go on."""
        self.replaced += 1
        if worker in self._workers:
            self._workers[self._workers.index(worker)] = self._start()
        for episode, session in self._sessions.items():
            if session.worker is worker:
                session.worker, session.done = None, 0
                self._single.pop(episode, None)
                # An episode without an open request moves when its next action comes.
                if len(session.results) < len(session.requests) and episode not in self._waiting:
                    self._waiting.append(episode)

    def _dispatch(self) -> None:
        """Gives waiting requests to workers that have a thread for them."""
        for _ in range(len(self._waiting)):
            episode = self._waiting.popleft()
            session = self._sessions.get(episode)
            if session is None:
                continue
            worker = session.worker or self._choose_worker(episode, session)
            if worker is None or not self._has_room(worker):
                self._waiting.append(episode)
                continue
            session.worker = worker
            method, argument = session.requests[session.done]
            worker.ask(episode, method, argument, time.monotonic() + self.config.step_timeout_s)

    def _has_room(self, worker: WorkerProcess) -> bool:
        return worker.takes_messages is not None and len(worker.deadlines) < self.config.threads

    def _choose_worker(self, episode: int, session: Session) -> WorkerProcess | None:
        """For an episode that no worker has: the one with the fewest steps, or one for it alone."""
        if session.alone:
            if len(self._single) < self.config.workers and episode not in self._single:
                self._single[episode] = self._start()
            return self._single.get(episode)
        return min(self._workers, key=lambda worker: (not self._has_room(worker), len(worker.deadlines)))
