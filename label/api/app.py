"""The application: routes, the form of errors, security headers, limits of bodies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response
from sqlalchemy.exc import DatabaseError
from starlette.exceptions import HTTPException

from label.api import people, quality, rounds, screening, tasks, team
from label.api.access import RequestLimit
from label.errors import NotHere, Refused
from label.store.database import is_disk_full
from label.workplace import Workplace

PAGES_FOLDER = Path(__file__).parent.parent / "pages"
PAGES = {
    "/": "home",
    "/join": "join",
    "/screen": "screen",
    "/task": "task",
    "/mine": "mine",
    "/review": "review",
    "/people": "people",
    "/batches": "batches",
    "/quality": "quality",
    "/rounds": "rounds",
    "/guidelines": "guidelines",
}
"""Path -> page. Each is the same for everybody; what it shows comes from the API."""
MAX_BODY = 1024 * 1024
MAX_IMPORT = 64 * MAX_BODY
"""Longest body of POST /api/items."""
HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'self'; base-uri 'none'; frame-ancestors 'none'; form-action 'self'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


def create_app(workplace: Workplace) -> FastAPI:
    """The application of one workplace."""
    # The documentation pages of FastAPI load scripts from elsewhere, which the headers forbid.
    app = FastAPI(
        title="Labelling workplace",
        version="1",
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
    )
    app.state.workplace = workplace
    app.state.limit = RequestLimit(workplace.settings.requests_per_10_s)
    for module in (people, screening, tasks, quality, rounds, team):
        app.include_router(module.router)
    for path in PAGES:
        app.add_api_route(path, page, methods=["GET"], include_in_schema=False)
    app.add_api_route("/pages/{name}", page_file, methods=["GET"], include_in_schema=False)
    app.add_api_route("/health", health, methods=["GET"])
    app.add_exception_handler(Refused, answer_refused)
    app.add_exception_handler(RequestValidationError, answer_invalid)
    app.add_exception_handler(HTTPException, answer_http)
    app.add_exception_handler(DatabaseError, answer_database)
    app.add_middleware(Limits)
    return app


def health(request: Request) -> dict[str, str]:
    """Whether the database answers."""
    with request.app.state.workplace.database.read() as connection:
        connection.exec_driver_sql("SELECT 1")
    return {"status": "ok"}


def page(request: Request) -> FileResponse:
    return FileResponse(PAGES_FOLDER / f"{PAGES[request.url.path]}.html")


def page_file(name: str) -> FileResponse:
    """Scripts and styles."""
    files = {file.name: file for file in PAGES_FOLDER.iterdir() if file.suffix in (".js", ".css", ".svg")}
    if name not in files:
        raise NotHere("page", "there is no such file")
    return FileResponse(files[name])


def error_answer(status: int, code: str, message: str, details: dict[str, Any] | None = None) -> Response:
    """{"error": {"code", "message", …}}, also for texts that are no valid Unicode."""
    error = {"code": code, "message": message, **(details or {})}
    headers = {}
    if "retry_after_s" in error:
        headers["retry-after"] = str(error["retry_after_s"])
    # With escapes: the message may quote half of a surrogate pair.
    return Response(json.dumps({"error": error}), status, headers, "application/json")


async def answer_refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return error_answer(error.status, error.code, str(error), error.details)


async def answer_invalid(_: Request, error: Exception) -> Response:
    """The first problem only: the others often follow from it."""
    assert isinstance(error, RequestValidationError)
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"] if part not in ("body", "query", "path", "header"))
    message = problem["msg"].removeprefix("Value error, ")
    return error_answer(422, "bad_input", f"key '{key}': {message[:1].lower()}{message[1:]}", {"key": key})


async def answer_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_answer(error.status_code, "http", str(error.detail), None)


async def answer_database(_: Request, error: Exception) -> Response:
    assert isinstance(error, DatabaseError)
    if is_disk_full(error):
        return error_answer(
            507, "disk_full", "the disk of the server is full; nothing was stored, keep the page open"
        )
    return error_answer(503, "database", "the database does not answer; try again")


class Limits:
    """ASGI middleware: refuses long bodies, and adds the security headers to every answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = MAX_IMPORT if scope["path"] == "/api/items" else MAX_BODY
        sender = HeaderSend(send)
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
            if size > limit:
                answer = error_answer(413, "too_long", f"the request is over {limit // 1024} KiB")
                await answer(scope, receive, sender)
                return
        await self.app(scope, BodyReceive(b"".join(parts), receive), sender)


class BodyReceive:
    """An ASGI `receive` that gives a body that was read already."""

    def __init__(self, body: bytes, receive: Any) -> None:
        self.body: bytes | None = body
        self.receive = receive

    async def __call__(self) -> Any:
        if self.body is None:
            return await self.receive()
        body, self.body = self.body, None
        return {"type": "http.request", "body": body, "more_body": False}


class HeaderSend:
    """An ASGI `send` that adds the security headers."""

    def __init__(self, send: Any) -> None:
        self.send = send

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *HEADERS]}
        await self.send(message)
