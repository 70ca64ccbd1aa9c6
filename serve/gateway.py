"""What every request passes first: host name, API key, rate limit, body and capacity.

    client ─► Gateway ─┬─ MODEL_ROUTES ────► vLLM's application of the model that the request names
                       └─ everything else ─► this project's own application (`serve.api`)

Plain ASGI instead of a framework's middleware, because every chunk of every stream passes through
it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.network import is_loopback
from serve.addresses import AllowedHosts
from serve.config import ServeConfig
from serve.keys import ApiKeys, RateLimit, digest
from serve.request_stats import RecordedSend, RequestStats
from serve.vllm_messages import ErrorSend

MODEL_ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize", "/detokenize")
"""What vLLM's applications answer."""
PUBLIC_PATHS = ("/health", "/", "/playground", "/status")
"""No key needed; nor for what is under /pages/."""
SECURITY_HEADERS = [
    (b"content-security-policy", b"default-src 'self'; base-uri 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
ERROR_TYPES = {401: "authentication_error", 429: "rate_limit_error"}
"""Types of the OpenAI protocol by status; all others are invalid_request_error."""


@dataclass(eq=False)
class Refusal(Exception):
    """A request that is not served: status, message and seconds after which a retry may succeed (0:
    no hint)."""

    status: int
    message: str
    retry_after_s: float = 0.0


class Gateway:
    """ASGI middleware around `app`, the application of this project's own routes."""

    def __init__(self, app: Any, config: ServeConfig, models: Mapping[str, Any], admin_digest: str) -> None:
        """`models` are the served models by the name that clients ask for; the first is the
        default. `admin_digest` is the SHA-256 of the admin token. Raises UserError if the file of
        keys is missing or malformed."""
        self.app, self.config, self.models, self.admin_digest = app, config, models, admin_digest
        self.stats = RequestStats()
        self.keys: ApiKeys | None = None
        self.allowed_hosts: AllowedHosts | None = None
        if config.api_keys:
            self.keys = ApiKeys(Path(config.api_keys))
        else:
            self.allowed_hosts = AllowedHosts([config.host, *config.allowed_hosts])
        self.rate_limit: RateLimit | None = None
        if config.requests_per_minute:
            replicas = config.replicas
            if config.autoscaling:
                replicas = config.autoscaling.max_replicas
            self.rate_limit = RateLimit(config.requests_per_minute / replicas)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        if scope["method"] == "HEAD":  # what GET answers, without the body
            scope, send = {**scope, "method": "GET"}, HeadSend(send)
        try:
            self._check_access(scope, path)
            request = None
            if scope["method"] == "POST":
                body = await self._read_body(receive)
                receive = ReplayedReceive(body, receive)
                if body or path in MODEL_ROUTES:
                    request = _parse(body)
            if scope["method"] == "POST" and path in MODEL_ROUTES:
                await self._generate(self._choose_model(request), scope, receive, send)
            else:
                await self.app(scope, receive, HeaderSend(send, SECURITY_HEADERS))
        except Refusal as refusal:
            self.stats.refused += 1
            await _send_refusal(send, refusal)

    def _check_access(self, scope: Any, path: str) -> None:
        """Raises Refusal if the client may not use this path now."""
        if self.allowed_hosts and (reason := self.allowed_hosts.reason_to_refuse(dict(scope["headers"]))):
            raise Refusal(403, reason)
        if path in PUBLIC_PATHS or path.startswith("/pages/"):
            return
        key = _bearer_token(scope)
        if path.startswith("/admin/"):
            if digest(key) != self.admin_digest:
                raise Refusal(401, "this needs the admin token of RUN/endpoint.json")
        elif self.keys is None:
            if not _is_local(scope):
                raise Refusal(401, "without API keys only clients on the same machine are served")
        else:
            # Handlers read it as request.state.key_name.
            scope["state"] = {**scope.get("state", {}), "key_name": self._check_key(self.keys, key)}

    def _check_key(self, keys: ApiKeys, key: str) -> str:
        """The name of the key."""
        name = keys.name(key)
        if name is None:
            raise Refusal(401, "missing or unknown API key; send it as `Authorization: Bearer KEY`")
        if self.rate_limit:
            wait_s = self.rate_limit.wait(name)
            if wait_s:
                raise Refusal(429, f"key {name} is over its requests per minute", wait_s)
        return name

    async def _read_body(self, receive: Any) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refusal(400, "the request ended early")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            # Checked part by part, so that a body without end takes no more memory than this.
            if size > self.config.max_body_kib * 1024:
                raise Refusal(413, f"the request body is over {self.config.max_body_kib} KiB")
            if not message.get("more_body"):
                return b"".join(parts)

    def _choose_model(self, request: Any) -> Any:
        """The model that the request names, else the first: vLLM's application refuses an unknown
        name itself."""
        if self.stats.ongoing >= self.config.max_ongoing:
            raise Refusal(429, "the service is at its limit of requests; try again", 1)
        name = None
        if isinstance(request, dict):
            name = request.get("model")
        if isinstance(name, str) and name in self.models:
            return self.models[name]
        return next(iter(self.models.values()))

    async def _generate(self, model: Any, scope: Any, receive: Any, send: Any) -> None:
        with RecordedSend(send, model, self.stats) as recorded_send:
            await model.app(scope, receive, ErrorSend(recorded_send, model.flags))


class ReplayedReceive:
    """An ASGI `receive` that gives a body which was read already, then what comes after it (a
    disconnect)."""

    def __init__(self, body: bytes, receive: Any) -> None:
        self.body: bytes | None = body
        self.receive = receive

    async def __call__(self) -> Any:
        if self.body is None:
            return await self.receive()
        body, self.body = self.body, None
        return {"type": "http.request", "body": body, "more_body": False}


class HeadSend:
    """An ASGI `send` for HEAD: the answer without its body."""

    def __init__(self, send: Any) -> None:
        self.send = send

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await self.send(message)


class HeaderSend:
    """An ASGI `send` that adds headers to the answer."""

    def __init__(self, send: Any, headers: list[tuple[bytes, bytes]]) -> None:
        self.send, self.headers = send, headers

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *self.headers]
        await self.send(message)


def _parse(body: bytes) -> Any:
    """The JSON of a request. Raises Refusal for what is none, and for text that no UTF-8 can hold."""
    try:
        request = json.loads(body)
        # Here for all routes: half a surrogate pair passes JSON, and fails wherever a tokenizer, a file
        # or an answer needs it as bytes. So do numbers that are not finite, which JSON does not have.
        json.dumps(request, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        code = hex(ord(error.object[error.start]))
        raise Refusal(
            400, f"the body has half of a surrogate pair ({code}), which is no character; send both or none"
        ) from None
    except (ValueError, RecursionError) as error:  # includes wrong UTF-8
        raise Refusal(400, f"the body is not valid JSON: {error}") from None
    return request


def _bearer_token(scope: Any) -> str:
    """The token of the Authorization header; empty if there is none."""
    header = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer":
        return ""
    return token.strip()


def _is_local(scope: Any) -> bool:
    # Without a client address (a Unix socket) the request comes from this machine.
    client = scope.get("client") or ("127.0.0.1", 0)
    return is_loopback(client[0])


async def _send_refusal(send: Any, refusal: Refusal) -> None:
    """Answers with an error in the form of the OpenAI protocol."""
    error = {
        "message": refusal.message,
        "type": ERROR_TYPES.get(refusal.status, "invalid_request_error"),
        "param": None,
        "code": refusal.status,
    }
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refusal.retry_after_s:
        headers.append((b"retry-after", str(math.ceil(refusal.retry_after_s)).encode()))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
