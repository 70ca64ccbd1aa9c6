"""Counts and latencies of the requests that one replica answered; the status page adds the replicas
up."""

from __future__ import annotations

import time
from collections import deque
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

VERSION_HEADER = b"x-weight-version"
request_versions: ContextVar[list[str] | None] = ContextVar("request_versions", default=None)
"""The weight versions that wrote the answer to the current request so far, in order of
appearance."""


def joined_versions() -> str:
    """The versions of `request_versions`, with commas between them."""
    return ",".join(request_versions.get() or ())


@dataclass
class RequestStats:
    """Requests to the models only; pages and status are not counted, except where they are
    refused."""

    requests: int = 0
    ongoing: int = 0
    """Requests in flight."""
    refused: int = 0
    """Answers 400 to 499."""
    failed: int = 0
    """Answers of 500 and more."""
    recent: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=500))
    """(seconds to the first chunk or 0 without streaming, seconds in all) of the last complete
    answers."""

    def summary(self) -> dict[str, Any]:
        """The fields of a replica on the status page. Times in seconds, 0 before the first
        answer."""
        first_chunk, total = np.array(self.recent or [(0.0, 0.0)]).T
        if first_chunk.any():
            first_chunk = first_chunk[first_chunk > 0]
        return {
            "requests": self.requests,
            "ongoing": self.ongoing,
            "refused": self.refused,
            "failed": self.failed,
            "ttft_p50": float(np.median(first_chunk)),
            "ttft_p99": float(np.quantile(first_chunk, 0.99)),
            "latency_p50": float(np.median(total)),
            "latency_p99": float(np.quantile(total, 0.99)),
        }


class RecordedSend:
    """An ASGI `send` that names the weight version in the answer's header and measures the answer.

    A context manager around the application that answers; `model` has the `version` that it holds.
    """

    def __init__(self, send: Any, model: Any, stats: RequestStats) -> None:
        self.send, self.model, self.stats = send, model, stats
        self.versions: list[str] = []
        self.started = time.monotonic()
        self.first_chunk_s = 0.0
        self.status = 0
        self.complete = False

    def __enter__(self) -> Self:
        request_versions.set(self.versions)
        self.stats.requests += 1
        self.stats.ongoing += 1
        return self

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            # A stream's header leaves before its tokens are written: it can only name the version
            # loaded now.
            version = ",".join(self.versions) or self.model.version.name
            message["headers"] = [*message["headers"], (VERSION_HEADER, version.encode())]
        else:
            self.complete = not message.get("more_body", False)
            # An answer in one piece has no first chunk.
            if not self.first_chunk_s and not self.complete:
                self.first_chunk_s = time.monotonic() - self.started
        await self.send(message)

    def __exit__(self, *error: object) -> None:
        # An answer that was cut off, or that raised before its start, is in no latency.
        self.stats.ongoing -= 1
        if 400 <= self.status < 500:
            self.stats.refused += 1
        elif self.status >= 500:
            self.stats.failed += 1
        elif self.complete:
            self.stats.recent.append((self.first_chunk_s, time.monotonic() - self.started))
