"""Rewards computed from the text of a response: by a Python function of the user
(`actors.function_rewards`), by a language model (`actors.judge_rewards`), or by an HTTP endpoint.

`actors.scoring` submits requests before it runs its models and collects the results after, so that
the models and the rewards run at the same time. A reward that raises, does not answer in time or is
not finite is tried again; after the last attempt the response has no reward but a reason.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import httpx
from pydantic_core import to_json

from actors.child_process import MAX_REASON_CHARACTERS
from actors.reward_config import HTTPReward
from actors.reward_worker import as_score
from common.network import is_loopback_url

T = TypeVar("T")

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
        size = self.config.batch_size
        batches = [requests[start : start + size] for start in range(0, len(requests), size)]
        return [self._pool.submit(self._attempt_all, batch) for batch in batches]

    def _attempt_all(self, batch: Sequence[RewardRequest]) -> list[RewardResult]:
        rewards, failure = attempt_all(partial(self._post, batch), self.config.retries)
        if rewards is None:
            return [RewardResult(math.nan, failure)] * len(batch)
        return [RewardResult(reward) for reward in rewards]

    def _post(self, batch: Sequence[RewardRequest]) -> list[float | None]:
        items = []
        for request in batch:
            items.append({"row": request.row, "response": request.response, "ended": request.ended})
        if self.config.batch_size == 1:
            return [as_score(self._answer(items[0])["reward"])]
        rewards = self._answer({"items": items})["rewards"]
        if len(rewards) != len(batch):
            raise ValueError(f"{len(rewards)} rewards for {len(batch)} items")
        return [as_score(reward) for reward in rewards]

    def _answer(self, values: dict[str, Any]) -> Any:
        # Rows may hold dates and numpy values (as text) and NaN, which JSON has no word for (null).
        body = to_json(values, inf_nan_mode="null", bytes_mode="base64", fallback=str)
        headers = {"content-type": "application/json"}
        return json_of(self._client.post(self.config.url, content=body, headers=headers))


def json_of(answer: httpx.Response) -> Any:
    """What an endpoint has answered. Raises HTTPStatusError, with the endpoint's own words, if it refuses."""
    if answer.is_error:
        said = " ".join(answer.text.split())
        message = f"{answer.status_code} {answer.reason_phrase}: {said}"
        raise httpx.HTTPStatusError(message, request=answer.request, response=answer)
    return answer.json()


def attempt_all(call: Callable[[], T], retries: int) -> tuple[T | None, str]:
    """(the result of a call that may fail and is then made again, after pauses that double; why the last
    attempt failed)."""
    failure = ""
    for attempt in range(retries + 1):
        if attempt > 0:
            time.sleep(FIRST_PAUSE_S * 2 ** (attempt - 1))
        try:
            return call(), ""
        except Exception as error:  # the network may raise anything
            failure = f"{type(error).__name__}: {str(error).strip()[:MAX_REASON_CHARACTERS]}"
    return None, failure
