"""The cord: a request to stop training, as a file, RUN/stop.json, so that it holds whatever runs then.

Written by `hero rounds stop` and by labelers (`label.api.rounds`). PPO looks for it in its own run directory
after each iteration; that of a round is RUN/rounds/NNN, so the request is written there too. It stays until
somebody takes it back.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from common.errors import RunStoppedError
from common.files import read_json, write_json
from common.run_paths import RunPaths


def request_stop(run: RunPaths, who: str, why: str) -> dict[str, Any]:
    """Returns the request that is in force: an earlier one stays as it is."""
    request = stop_request(run) or {"who": who, "why": why, "time": time.time()}
    for path in _files(run):
        if not path.exists():
            write_json(path, request)
    return request


def stop_request(run: RunPaths) -> dict[str, Any] | None:
    """Who has asked, why and when; None if nobody has."""
    for path in _files(run):
        request: dict[str, Any] | None = read_json(path)
        if request:
            return request
    return None


def withdraw_stop(run: RunPaths) -> None:
    for path in _files(run):
        path.unlink(missing_ok=True)


def check_stop(run: RunPaths, advice: str) -> None:
    """Raises RunStoppedError if somebody has asked to stop. `advice` says how to go on."""
    request = stop_request(run)
    if request:
        raise RunStoppedError(f"{run.root}: stopped by {request['who']}: {request['why']}; {advice}")


def _files(run: RunPaths) -> list[Path]:
    return [run.stop, *(paths.stop for paths in run.started_rounds()[-1:])]
