"""Rewards by a Python function of the user's, called in processes of its own (`actors.reward_worker`).

submit ─► chunks of calls ─► one thread for each process ─► process ─► scores
                                     │ no answer within timeout_s, or the process has died:
                                     └ that call has failed; another process goes on after it
"""

from __future__ import annotations

import math
import queue
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection

from actors.child_process import LOAD_TIMEOUT_S, ChildProcess
from actors.reward_config import FunctionReward
from actors.text_rewards import RewardRequest, RewardResult, TextReward
from common.errors import UserError

CHUNK = 64
"""Calls that one process gets at once: one message each would be most of the time of a cheap call."""
MAX_LOST_SHARE, MIN_LOST = 0.02, 3
"""Calls of one batch that may hang or crash; the others are then not made. Each costs `timeout_s`, and
above rewards.quarantine_share, 0.02 by default, the run stops in any case."""


class FunctionTextReward(TextReward):
    """One function and the processes that call it."""

    def __init__(self, config: FunctionReward) -> None:
        """Raises UserError if the function cannot be loaded."""
        self.config = config
        self._pool = ThreadPoolExecutor(config.workers, thread_name_prefix="reward")
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        for _ in range(config.workers):
            self._idle.put(_Process(config))
        # In a thread of the pool: the kernel ends a process with the thread that started it.
        self._pool.submit(self._start_first).result()

    def submit(self, requests: Sequence[RewardRequest]) -> list[Future[list[RewardResult]]]:
        limit = max(MIN_LOST, int(MAX_LOST_SHARE * len(requests)))
        lost = _Lost(limit)
        # Even chunks, so that all processes have work.
        size = max(1, min(CHUNK, math.ceil(len(requests) / self.config.workers)))
        futures = []
        for start in range(0, len(requests), size):
            futures.append(self._pool.submit(self._call, requests[start : start + size], lost))
        return futures

    def close(self) -> None:
        self._pool.shutdown()
        while not self._idle.empty():
            self._idle.get().stop()

    def _start_first(self) -> None:
        process = self._idle.get()
        process.start()
        self._idle.put(process)

    def _call(self, requests: Sequence[RewardRequest], lost: _Lost) -> list[RewardResult]:
        """A result for each request; never raises."""
        process = self._idle.get()
        try:
            results: list[RewardResult] = []
            while len(results) < len(requests):
                if lost.reason_to_stop:
                    results.append(RewardResult(math.nan, lost.reason_to_stop))
                    continue
                results += process.call(requests[len(results) :], lost)
            return results
        finally:
            self._idle.put(process)


class _Lost:
    """Calls of one batch in which a process was lost, counted over all its chunks."""

    def __init__(self, limit: int) -> None:
        self._count, self._limit = 0, limit
        self.reason_to_stop = ""

    def add(self, reason: str) -> None:
        self._count += 1
        if self._count >= self._limit:
            self.reason_to_stop = (
                f"not called: {self._count} calls of this batch before it hung or crashed, the last: {reason}"
            )


class _Process:
    """One worker process, started when it is needed."""

    def __init__(self, config: FunctionReward) -> None:
        self._config = config
        self._process: ChildProcess | None = None

    def start(self) -> None:
        """Raises UserError if the function cannot be loaded."""
        process = ChildProcess("actors.reward_worker", self._config.path, str(self._config.retries))
        self._process = process
        if not process.connection.poll(LOAD_TIMEOUT_S):
            self.stop()
            raise UserError(f"reward={self._config.path}: not loaded within {LOAD_TIMEOUT_S:g} s")
        try:
            kind, reason = process.connection.recv()
        except (EOFError, ConnectionResetError):
            raise UserError(f"reward={self._config.path}: {self._end()} while it was loaded") from None
        if kind == "unusable":
            self.stop()
            raise UserError(reason)

    def call(self, requests: Sequence[RewardRequest], lost: _Lost) -> list[RewardResult]:
        """Results of the first requests, at least one: up to and with a call that hangs or crashes."""
        results: list[RewardResult] = []
        try:
            if self._process is None:
                self.start()
            assert self._process is not None
            connection = self._process.connection
            connection.send([(call.row, call.response, call.ended) for call in requests])
            while len(results) < len(requests):
                results.append(self._receive(connection))
        except TimeoutError as error:
            self.stop()
            reason = str(error)
        except (EOFError, OSError):
            reason = self._end()
        except UserError as error:  # it could be loaded before, so something else has changed
            reason = str(error)
        else:
            return results
        lost.add(reason)
        return [*results, RewardResult(math.nan, reason)]

    def _receive(self, connection: Connection) -> RewardResult:
        """The result of one call, after all its attempts."""
        while True:
            if not connection.poll(self._config.timeout_s):
                raise TimeoutError(f"no answer within timeout_s={self._config.timeout_s:g}")
            kind, value = connection.recv()
            if kind == "score":
                return RewardResult(value)
            if kind == "failed":
                return RewardResult(math.nan, value)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process = None

    def _end(self) -> str:
        """How the process has ended."""
        assert self._process is not None
        how, self._process = self._process.end(), None
        return how
