"""Who asks: the person of a session cookie or of a key, what the role may do, and how often.

A cookie is sent by the browser whatever page caused the request, so requests that change something must come
from the workplace's own pages (Origin). A key in the Authorization header is never sent by itself.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from urllib.parse import urlsplit

from fastapi import Request

from label.errors import Forbidden, TooMany
from label.store import people
from label.store.database import AnyRow
from label.workplace import Workplace

COOKIE = "label_session"
WINDOW_S = 10


class RequestLimit:
    """At most `limit` requests of one person within `WINDOW_S` seconds."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._times: dict[str, deque[float]] = {}

    def check(self, person_id: str) -> None:
        """Raises TooMany."""
        now, times = time.monotonic(), self._times.setdefault(person_id, deque())
        while times and times[0] < now - WINDOW_S:
            times.popleft()
        if len(times) >= self.limit:
            wait_s = int(times[0] + WINDOW_S - now) + 1
            raise TooMany("rate", f"more than {self.limit} requests in {WINDOW_S} s", retry_after_s=wait_s)
        times.append(now)


def workplace_of(request: Request) -> Workplace:
    workplace: Workplace = request.app.state.workplace
    return workplace


async def place_of(request: Request) -> Workplace:
    """The workplace as a dependency: async, as FastAPI calls any other in a thread, which costs more than
    three queries do."""
    return workplace_of(request)


def requires(*roles: str) -> Callable[[Request], AnyRow]:
    """A dependency that gives the person who asks. Raises Unauthorized without one, and Forbidden for a
    person of another role or a request from another site's page."""

    def person_of(request: Request) -> AnyRow:
        row = identify(request)
        if row.role not in roles:
            raise Forbidden("role", f"this is for {' and '.join(roles)}; you are {row.role}")
        return row

    person_of.roles = roles  # type: ignore[attr-defined]
    return person_of


def identify(request: Request) -> AnyRow:
    workplace = workplace_of(request)
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    with workplace.database.read() as connection:
        if scheme.lower() == "bearer":
            row = people.by_key(connection, key.strip())
        else:
            row = people.by_session(connection, request.cookies.get(COOKIE, ""))
            check_origin(request)
    # Machines that simulate people ask as fast as they can.
    if row.grp != "simulated":
        request.app.state.limit.check(row.id)
    return row


def check_origin(request: Request) -> None:
    """Raises Forbidden for a change that a page of another site asks for."""
    if request.method in ("GET", "HEAD"):
        return
    origin = request.headers.get("origin")
    if origin is None:
        return
    public = workplace_of(request).settings.public_url
    expected = {request.headers.get("host", ""), urlsplit(public or "").netloc}
    if urlsplit(origin).netloc not in expected - {""}:
        raise Forbidden("origin", "the request comes from a page of another site")


EVERYBODY = ("labeler", "reviewer", "owner")
"""Owners and reviewers label too."""
STAFF = ("reviewer", "owner")
"""Who sees the work of others, by pseudonym."""
OWNERS = ("owner",)
