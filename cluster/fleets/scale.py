"""`hero scale`: how many actors the fleets of a running `hero run` are to have. Imports nothing of
Ray.

A scale request is a file in the run directory, {fleet: number of actors}. `request_scale` writes it
for the command line, `cluster.fleets.scaling` reads it before each weight update, and
the start of a run deletes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError
from common.files import read_json, try_lock, write_json
from common.run_paths import RunPaths


def request_scale(root: Path, counts: Sequence[str]) -> dict[str, int]:
    """Writes a scale request for the run at work in `root`: `counts` are items like rollout=4.
    Returns all requests of that run. Raises UserError for a malformed item, or if no run is at work
    there."""
    paths = RunPaths(root)
    requests = scale_requests(paths)
    for item in counts:
        kind, _, number = item.partition("=")
        if kind == "learner":
            raise UserError(
                f"{item}: a ZeRO optimizer state fits its number of ranks; stop the run and set "
                "learners.ranks"
            )
        if kind not in ("rollout", "scoring") or not number.isdecimal() or int(number) < 1:
            raise UserError(f"{item}: expected rollout=N or scoring=N with N of 1 or more")
        requests[kind] = int(number)
    if not paths.config.exists():
        raise UserError(f"{root}: no run directory (config.yaml is missing)")
    try:
        with try_lock(paths.lock, "at work"):
            pass
    except UserError:
        # A run holds the lock, so there is someone to read the request.
        write_json(paths.scale, requests)
        return requests
    settings = " ".join(f"{kind}.actors={count}" for kind, count in requests.items())
    raise UserError(f"{root}: no `hero run` is at work there; start one with {settings}")


def scale_requests(paths: RunPaths) -> dict[str, int]:
    """Number of actors that was last requested, for each fleet that has a request."""
    return read_json(paths.scale) or {}
