"""What every request passes: who asks, how much, how large; then vLLM's application of the model it names, or our own.

Plain ASGI, because it stands in the way of every chunk of every stream.
"""

from __future__ import annotations

import ipaddress
import json
import math
import time
from collections import deque
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from serve.config import ServeConfig
from serve.keys import ApiKeys, RateLimit, digest

ROUTES = ("/v1/chat/completions", "/v1/completions")
"""What vLLM's applications answer."""
WRITTEN: ContextVar[list[str] | None] = ContextVar("WRITTEN", default=None)
"""The weight versions that have written the answer to the current request, in order of appearance."""
VERSION_HEADER = b"x-weight-version"
OPEN = ("/health", "/", "/playground", "/status")  # and /pages/…: no key needed
SECURE = [
    (b"content-security-policy", b"default-src 'self'; base-uri 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


@dataclass
class Traffic:
    """What one replica has answered; the status page adds the replicas up."""

    requests: int = 0
    ongoing: int = 0
    refused: int = 0
    """Answers 400 to 499."""
    failed: int = 0
    """Answers of 500 and more."""
    recent: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=500))
    """(seconds to the first chunk or 0 without streaming, seconds in all) of answers that ended well."""

    def summary(self) -> dict[str, Any]:
        first, whole = np.array(self.recent or [(0.0, 0.0)]).T
        first = first[first > 0] if first.any() else first
        return {
            "requests": self.requests,
            "ongoing": self.ongoing,
            "refused": self.refused,
            "failed": self.failed,
            "ttft_p50": float(np.median(first)),
            "ttft_p99": float(np.quantile(first, 0.99)),
            "latency_p50": float(np.median(whole)),
            "latency_p99": float(np.quantile(whole, 0.99)),
        }


class Gateway:
    """ASGI middleware around the application of this project's own routes."""

    def __init__(self, app: Any, config: ServeConfig, models: Mapping[str, Any], admin: str) -> None:
        self.app, self.config, self.models, self.admin = app, config, models, admin
        self.keys = ApiKeys(Path(config.api_keys)) if config.api_keys else None
        replicas = config.autoscaling.max_replicas if config.autoscaling else config.replicas
        self.limit = RateLimit(config.requests_per_minute / replicas) if config.requests_per_minute else None
        self.traffic = Traffic()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        refusal = self._refusal(scope, path)
        if refusal is None and scope["method"] == "POST":
            body, refusal = await self._body(scope, receive)
            if body is not None:
                receive = _replay(body, receive)
        if refusal is not None:
            self.traffic.refused += 1
            await _refuse(send, *refusal)
        elif path in ROUTES and scope["method"] == "POST":
            await self._generate(scope, receive, send, body or b"")
        else:
            await self.app(scope, receive, _with_headers(send, SECURE))

    def _refusal(self, scope: Any, path: str) -> tuple[int, str, float] | None:
        """(status, message, seconds until a retry) if the request may not be served."""
        if path in OPEN or path.startswith("/pages/"):
            return None
        scheme, _, key = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1").partition(" ")
        key = key.strip() if scheme.lower() == "bearer" else ""
        if path.startswith("/admin/"):
            return (
                None
                if digest(key) == self.admin
                else (401, "this needs the admin token of RUN/endpoint.json", 0)
            )
        if self.keys is None:
            here = ipaddress.ip_address((scope.get("client") or ("127.0.0.1",))[0]).is_loopback
            return None if here else (401, "without API keys only clients on the same machine are served", 0)
        name = self.keys.name(key)
        if name is None:
            return 401, "missing or unknown API key; send it as `Authorization: Bearer KEY`", 0
        wait = self.limit.wait(name) if self.limit else 0
        return (429, f"key {name} is over its requests per minute", wait) if wait else None

    async def _body(self, scope: Any, receive: Any) -> tuple[bytes | None, tuple[int, str, float] | None]:
        most, parts, size = self.config.max_body_kib * 1024, [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None, (400, "the request ended early", 0)
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > most:
                return None, (413, f"the request body is over {self.config.max_body_kib} KiB", 0)
            if not message.get("more_body"):
                return b"".join(parts), None

    async def _generate(self, scope: Any, receive: Any, send: Any, body: bytes) -> None:
        """Hands the request to the model it names (the first if it names none), and watches the answer."""
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError) as fault:  # includes wrong UTF-8
            self.traffic.refused += 1
            return await _refuse(send, 400, f"the body is not valid JSON: {fault}", 0)
        if self.traffic.ongoing >= self.config.max_ongoing:
            self.traffic.refused += 1
            return await _refuse(send, 429, "the service is at its limit of requests; try again", 1)
        name = asked.get("model") if isinstance(asked, dict) else None
        model = self.models.get(name) if isinstance(name, str) else None
        model = model or next(iter(self.models.values()))
        written: list[str] = []
        WRITTEN.set(written)
        started, first, status, ended = time.monotonic(), 0.0, 0, False

        async def watch(message: Any) -> None:
            nonlocal first, status, ended
            if message["type"] == "http.response.start":
                status = message["status"]
                version = ",".join(written) or model.served.version
                message["headers"] = [*message["headers"], (VERSION_HEADER, version.encode())]
            else:
                ended = not message.get("more_body", False)
                first = first or (0.0 if ended else time.monotonic() - started)
            await send(message)

        self.traffic.requests += 1
        self.traffic.ongoing += 1
        try:
            await model.app(scope, receive, watch)
        finally:
            self.traffic.ongoing -= 1
            if 400 <= status < 500:
                self.traffic.refused += 1
            elif status >= 500:
                self.traffic.failed += 1
            elif ended:
                self.traffic.recent.append((first, time.monotonic() - started))
        return None


def _replay(body: bytes, receive: Any) -> Any:
    """A `receive` that gives the body that was read already, then what comes after it (a disconnect)."""
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Any:
        return pending.pop() if pending else await receive()

    return again


def _with_headers(send: Any, headers: list[tuple[bytes, bytes]]) -> Any:
    async def sending(message: Any) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *headers]
        await send(message)

    return sending


async def _refuse(send: Any, status: int, message: str, wait: float) -> None:
    """An error in the form of the OpenAI protocol."""
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(status, "invalid_request_error")
    body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": status}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if wait:
        headers.append((b"retry-after", str(math.ceil(wait)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
