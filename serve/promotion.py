"""`hero promote` and `hero rollback`, and promotion while PPO trains.

Both go through the running endpoint, which tries the version on one replica first. Where no
endpoint serves the run, they move the durable pointer, which the next endpoint loads.
"""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Any

import httpx

from common.errors import FleetError, UserError
from common.files import try_lock
from common.run_paths import RunPaths
from serve.manifest import verify
from serve.versions import list_versions, live_endpoint, locate, previous_version, set_current

TIMEOUT_S = 900
"""Enough for the two sets of answers of the canary and the swaps of all replicas."""
LOCKED = "another promotion is in progress; wait until it has ended"
"""Said to whoever finds RUN/promotions.lock taken."""


def promote(root: Path, version: str | None, why: str, who: str | None = None) -> dict[str, Any]:
    """Serves a stored version of the run, the newest if `version` is None.

    Returns the row of the log of promotions, whose outcome is "promoted" or "rolled back" (by the
    canary). Raises UserError if the version cannot be served, FleetError if the endpoint failed.
    """
    RunPaths(root).check_layout()
    versions = list_versions(root)
    if version is None and versions:
        version = versions[-1]
    if version is None or version not in versions:
        available = ", ".join(versions) or "none yet; `hero run` stores one at the end of its sft stage"
        raise UserError(f"{root}: has no version {version} (available: {available})")
    event = {"who": who or getpass.getuser(), "why": why}
    live = live_endpoint(root)
    if live:
        return _post(live, "promote", {"version": version, **event})
    return _move_pointer(root, version, event)


def rollback(root: Path, why: str, who: str | None = None) -> dict[str, Any]:
    """Serves the version again that was served before the present one. Returns and raises as
    `promote` does."""
    RunPaths(root).check_layout()
    version = previous_version(root)
    if version is None:
        raise UserError(f"{root}: the log of promotions has no version before the one that is served")
    event = {"who": who or getpass.getuser(), "why": why}
    live = live_endpoint(root)
    if live:
        return _post(live, "rollback", event)
    return _move_pointer(root, version, {**event, "rollback": True})


def _move_pointer(root: Path, version: str, event: dict[str, Any]) -> dict[str, Any]:
    with try_lock(RunPaths(root).promotions_lock, LOCKED):
        folder = locate(root, version).folder
        # No engine runs, so there is no other architecture that the version would have to fit.
        verify(folder, like=folder)
        return set_current(root, version, **event)


def _post(endpoint: dict[str, str], route: str, body: dict[str, str]) -> dict[str, Any]:
    token = {"Authorization": f"Bearer {endpoint['token']}"}
    response = httpx.post(
        f"{endpoint['url']}/admin/{route}", json=body, headers=token, timeout=TIMEOUT_S, trust_env=False
    )
    if response.status_code == 200:
        row: dict[str, Any] = response.json()
        return row
    message = f"{endpoint['url']}: {_error_message(response)}"
    if response.status_code >= 500:
        raise FleetError(message)
    raise UserError(message)


def _error_message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{response.status_code} {response.text[:300]}"
