"""Refusals of the workplace. The API answers each with its status and one sentence; a command prints the
sentence."""

from __future__ import annotations

from typing import Any

from common.errors import UserError


class Refused(UserError):
    """Something that is not done, with what to do instead. `status` is the HTTP status, `code` a word for
    programs, `details` what the page needs to go on."""

    status = 400

    def __init__(self, code: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code, self.details = code, details


class Unauthorized(Refused):
    status = 401


class Forbidden(Refused):
    status = 403


class NotHere(Refused):
    status = 404


class Conflict(Refused):
    status = 409


class BadInput(Refused):
    """A value that cannot be used; the message starts with its key."""

    status = 422

    def __init__(self, key: str, message: str) -> None:
        super().__init__("bad_input", f"key '{key}': {message}", key=key)


class TooMany(Refused):
    status = 429
