"""Rewards of the text of a response: a Python function of the user's, or an HTTP endpoint.

`actors.scoring` starts these before it runs its models and collects them afterwards, so that waiting costs nothing.
A reward that raises, does not answer or is not finite is tried again; then the sample has no score but a reason.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np

from actors.config import FunctionReward, HTTPReward
from common.plugins import load_object

Case = tuple[dict[str, Any], str, bool]  # row of the prompt file, response, whether it ended by itself


class TextReward:
    def __init__(self, config: FunctionReward | HTTPReward) -> None:
        self.config = config
        self._pause, workers = 0.0, 1
        if isinstance(config, HTTPReward):
            self._pause, workers = 0.05, config.concurrency
            self._client = httpx.Client(
                timeout=config.timeout_s, limits=httpx.Limits(max_connections=workers)
            )
        self._reward: Callable[..., Any] = (
            self._post if isinstance(config, HTTPReward) else load_object(config.path)
        )
        self._pool = ThreadPoolExecutor(workers)

    def start(self, cases: Sequence[Case]) -> list[Future[tuple[float, str]]]:
        """For each case the future of (reward, ""), or of (nan, reason)."""
        return [self._pool.submit(self._attempt, case) for case in cases]

    def _attempt(self, case: Case) -> tuple[float, str]:
        reason = ""
        for attempt in range(self.config.retries + 1):
            time.sleep(self._pause * 2**attempt if attempt else 0.0)
            try:
                reward = float(self._reward(*case))
                if math.isfinite(np.float32(reward)):
                    return reward, ""
                reason = f"not finite ({reward})"
            except Exception as fault:  # whatever the user's code or the network comes up with
                reason = f"{type(fault).__name__}: {str(fault).strip()[:300]}"
        return math.nan, reason

    def _post(self, row: dict[str, Any], response: str, ended: bool) -> float:
        assert isinstance(self.config, HTTPReward)
        content = json.dumps({"row": row, "response": response, "ended": ended}, default=str)
        answer = self._client.post(
            self.config.url, content=content, headers={"content-type": "application/json"}
        )
        return answer.raise_for_status().json()["reward"]
