"""`hero scale`: how many actors the fleets of a run at work are to have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError
from common.files import read_json, try_lock, write_json

SCALE_FILE = "scale.json"  # in the run directory: how many actors `hero scale` wants of which fleet


def request_scale(root: Path, counts: Sequence[str]) -> dict[str, int]:
    """Leaves word for the run at work in a directory of how many actors its fleets are to have; returns all such wishes."""
    wishes = read_json(root / SCALE_FILE) or {}
    for item in counts:
        kind, _, number = item.partition("=")
        if kind == "learner":
            raise UserError(
                f"{item}: a ZeRO optimizer state fits its number of ranks; stop the run and set learners.ranks"
            )
        if kind not in ("rollout", "scoring") or not number.isdecimal() or int(number) < 1:
            raise UserError(f"{item}: expected rollout=N or scoring=N with N of 1 or more")
        wishes[kind] = int(number)
    if not (root / "config.yaml").exists():
        raise UserError(f"{root}: no run directory (config.yaml is missing)")
    try:
        with try_lock(root / "lock", "at work"):
            pass
    except UserError:
        write_json(root / SCALE_FILE, wishes)
        return wishes
    settings = " ".join(f"{kind}.actors={count}" for kind, count in wishes.items())
    raise UserError(f"{root}: no `hero run` is at work there; start one with {settings}")
