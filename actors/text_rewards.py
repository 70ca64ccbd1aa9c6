"""Rewards computed from the text of a response: by a Python function of the user, or by an HTTP
endpoint.

`actors.scoring` submits requests before it runs its models and collects the results after, so that
the models and the rewards run at the same time. A reward that raises, does not answer in time or is
not finite is tried again; after the last attempt the response has no reward but a reason.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from actors.config import FunctionReward, HTTPReward
from common.plugins import load_object

FIRST_PAUSE_S = 0.1
MAX_REASON_CHARACTERS = 300


@dataclass(frozen=True)
class RewardRequest:
    """What a reward may look at."""

    row: dict[str, Any]
    """The prompt's row of the prompt file, with all its keys."""
    response: str
    ended: bool
    """Whether the response closed with the end-of-turn token (False: cut at the length limit)."""


@dataclass(frozen=True)
class RewardResult:
    score: float
    """nan if every attempt failed."""
    failure: str = ""
    """Why the last attempt failed."""


class TextReward:
    """One source of rewards and the threads that call it."""

    def __init__(self, config: FunctionReward | HTTPReward) -> None:
        self.config = config
        self._reward: Callable[[dict[str, Any], str, bool], Any]
        if isinstance(config, HTTPReward):
            workers, self._first_pause_s = config.concurrency, FIRST_PAUSE_S
            limits = httpx.Limits(max_connections=workers)
            self._url = config.url
            self._client = httpx.Client(timeout=config.timeout_s, limits=limits)
            self._reward = self._post
        else:
            # One thread: a user's function need not be safe to call from several.
            workers, self._first_pause_s = 1, 0.0
            self._reward = load_object(config.path)
        # Threads suffice: the user's function runs beside torch, which releases the interpreter
        # lock.
        self._pool = ThreadPoolExecutor(workers)

    def submit(self, requests: Sequence[RewardRequest]) -> list[Future[RewardResult]]:
        """The future result of each request. Its result never raises."""
        return [self._pool.submit(self._attempt_all, request) for request in requests]

    def _attempt_all(self, request: RewardRequest) -> RewardResult:
        failure = ""
        for attempt in range(self.config.retries + 1):
            if attempt > 0:
                time.sleep(self._first_pause_s * 2 ** (attempt - 1))
            try:
                score = float(self._reward(request.row, request.response, request.ended))
            except Exception as error:  # the user's code and the network may raise anything
                failure = f"{type(error).__name__}: {str(error).strip()[:MAX_REASON_CHARACTERS]}"
                continue
            # Scores travel as float32, where a large float64 becomes infinite.
            if math.isfinite(np.float32(score)):
                return RewardResult(score)
            failure = f"not finite ({score})"
        return RewardResult(math.nan, failure)

    def _post(self, row: dict[str, Any], response: str, ended: bool) -> Any:
        # default=str: rows of Parquet files hold dates and numpy values.
        body = json.dumps({"row": row, "response": response, "ended": ended}, default=str)
        headers = {"content-type": "application/json"}
        answer = self._client.post(self._url, content=body, headers=headers)
        return answer.raise_for_status().json()["reward"]
