"""`hero promote` and `hero rollback`, and promotion while PPO trains: through the running endpoint, which tries the
version on one replica first; where none runs, by moving the durable pointer that the next one loads."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Any

import httpx

from common.errors import UserError
from common.files import try_lock
from serve.versions import endpoint, find, kept, point, previous, verify

SECONDS = 900


def promote(root: Path, version: str | None, why: str, who: str | None = None) -> dict[str, Any]:
    """Serves a kept version of the run, the newest if none is named. Returns the row of the log, whose outcome is
    "promoted" or "rolled back"; raises UserError if it cannot be served."""
    versions = kept(root)
    version = version or (versions[-1] if versions else None)
    if version not in versions:
        known = ", ".join(versions) or "none yet; `hero run` keeps one with its sft stage"
        raise UserError(f"{root}: has no version {version} (there are: {known})")
    return _move(root, "promote", {"version": version, "who": who or getpass.getuser(), "why": why}, version)


def rollback(root: Path, why: str, who: str | None = None) -> dict[str, Any]:
    """Serves the version that was served before the present one."""
    version = previous(root)
    if version is None:
        raise UserError(f"{root}: the log of promotions has nothing before the version that is served")
    return _move(root, "rollback", {"who": who or getpass.getuser(), "why": why}, version)


def _move(root: Path, what: str, body: dict[str, str], version: str) -> dict[str, Any]:
    live = endpoint(root)
    if not live:
        with try_lock(root / "promotions.lock", "another promotion is at work; wait until it has ended"):
            folder = find(root, version).model
            verify(folder, folder)
            return point(
                root,
                version,
                who=body["who"],
                why=body["why"],
                **({"back": True} if what == "rollback" else {}),
            )
    token = {"Authorization": f"Bearer {live['token']}"}
    answer = httpx.post(f"{live['url']}/admin/{what}", json=body, headers=token, timeout=SECONDS)
    if answer.status_code != 200:
        raise UserError(f"{live['url']}: {_reason(answer)}")
    return answer.json()


def _reason(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{answer.status_code} {answer.text[:300]}"
