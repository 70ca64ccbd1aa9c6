"""Rewards computed from the text of a response: by a Python function of the user
(`actors.function_rewards`), or by an HTTP endpoint.

`actors.scoring` submits requests before it runs its models and collects the results after, so that
the models and the rewards run at the same time. A reward that raises, does not answer in time or is
not finite is tried again; after the last attempt the response has no reward but a reason.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
from pydantic_core import to_json

from actors.config import HTTPReward
from actors.reward_worker import MAX_REASON_CHARACTERS, as_score
from common.network import is_loopback_url

FIRST_PAUSE_S = 0.1


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
    score: float | None
    """None if the reward does not apply to the response, nan if every attempt failed."""
    failure: str = ""
    """Why the last attempt failed."""


class TextReward(ABC):
    """One source of rewards that reads the text."""

    @abstractmethod
    def submit(self, requests: Sequence[RewardRequest]) -> list[Future[list[RewardResult]]]:
        """The future results, in the order of the requests, some at a time. They never raise."""


class HTTPTextReward(TextReward):
    """An endpoint and the threads that call it."""

    def __init__(self, config: HTTPReward) -> None:
        self.config = config
        limits = httpx.Limits(max_connections=config.concurrency)
        # A proxy of the environment cannot reach an endpoint of this machine.
        direct = is_loopback_url(config.url)
        self._client = httpx.Client(timeout=config.timeout_s, limits=limits, trust_env=not direct)
        self._pool = ThreadPoolExecutor(config.concurrency)

    def submit(self, requests: Sequence[RewardRequest]) -> list[Future[list[RewardResult]]]:
        return [self._pool.submit(self._attempt_all, request) for request in requests]

    def _attempt_all(self, request: RewardRequest) -> list[RewardResult]:
        failure = ""
        for attempt in range(self.config.retries + 1):
            if attempt > 0:
                time.sleep(FIRST_PAUSE_S * 2 ** (attempt - 1))
            try:
                return [RewardResult(as_score(self._post(request)))]
            except Exception as error:  # the network may raise anything
                failure = f"{type(error).__name__}: {str(error).strip()[:MAX_REASON_CHARACTERS]}"
        return [RewardResult(math.nan, failure)]

    def _post(self, request: RewardRequest) -> Any:
        # Rows may hold dates and numpy values (as text) and NaN, which JSON has no word for (null).
        values = {"row": request.row, "response": request.response, "ended": request.ended}
        body = to_json(values, inf_nan_mode="null", bytes_mode="base64", fallback=str)
        headers = {"content-type": "application/json"}
        answer = self._client.post(self.config.url, content=body, headers=headers)
        return answer.raise_for_status().json()["reward"]
