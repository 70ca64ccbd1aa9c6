"""What to serve: a run's current policy, by its durable pointer, or any Hugging Face folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from learners.errors import UserError


@dataclass(frozen=True)
class Served:
    """A policy on disk."""

    model: Path
    version: str
    """Stage and version for a run ("ppo-60"), folder name otherwise."""


def resolve(target: Path) -> Served:
    """The policy that `target` (a run directory or a model folder) stands for now. Raises UserError if there is none."""
    if not target.is_dir():
        raise UserError(
            f"{target}: no such directory; give a run directory (made by `hero run`) or a Hugging Face folder"
        )
    pointer = target / "current.json"
    if pointer.exists():
        current = json.loads(pointer.read_text(encoding="utf-8"))
        model = target / current["path"]
        if not (model / "config.json").exists():
            raise UserError(
                f"{pointer}: points at {model}, which is not a model folder; run the {current['stage']} stage again"
            )
        return Served(model, f"{current['stage']}-{current['version']}")
    if (target / "config.json").exists():
        return Served(target, target.name)
    raise UserError(
        f"{target}: nothing to serve yet (neither current.json nor config.json); `hero run` writes a policy with its sft stage"
    )
