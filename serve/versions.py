"""The versions of a run's policy on disk, and the durable pointer at the one that is served.

    RUN/versions/ppo-20/       a Hugging Face folder (hard links), with manifest.json: size and SHA-256 of its files
    RUN/current.json           the version to serve: every replica loads it when it starts, and follows it afterwards
    RUN/promotions.jsonl       who moved the pointer, when, why, with which metrics
    RUN/endpoint.json          where the running endpoint listens and its admin token; only its owner can read it

Training calls `keep`; the pointer is moved by `serve.promotion`, or by training itself while nothing serves the run.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from safetensors import safe_open

from common.errors import UserError
from common.files import append_row, read_json, read_jsonl, write_json


@dataclass(frozen=True)
class ModelVersion:
    """A policy on disk."""

    model: Path
    version: str
    """Stage and version for a run ("ppo-60"), folder name otherwise."""


def resolve(target: Path) -> ModelVersion:
    """The policy that `target` (a run directory or a model folder) stands for now. Raises UserError if there is none."""
    if not target.is_dir():
        raise UserError(
            f"{target}: no such directory; give a run directory (made by `hero run`) or a Hugging Face folder"
        )
    pointer = target / "current.json"
    if pointer.exists():
        current = read_json(pointer)
        model = target / current["path"]
        if not (model / "config.json").exists():
            raise UserError(
                f"{pointer}: points at {model}, which is not a model folder; run the {current['stage']} stage again"
            )
        return ModelVersion(model, f"{current['stage']}-{current['version']}")
    if (target / "config.json").exists():
        return ModelVersion(target, target.name)
    raise UserError(
        f"{target}: nothing to serve yet (neither current.json nor config.json); `hero run` writes a policy with its sft stage"
    )


def find(target: Path, what: str) -> ModelVersion:
    """A version of a run ("ppo-20"), the model of one of its stages ("sft"), or any model folder, by name."""
    for folder in (target / "versions" / what, target / what / "model", Path(what)):
        if (folder / "config.json").exists():
            return ModelVersion(folder, Path(what).name)
    known = ", ".join(kept(target)) or "none"
    raise UserError(
        f"{what}: neither a version of {target} ({known}) nor one of its stages nor a model folder"
    )


def keep(root: Path, version: str, folder: Path, newest: int, pinned: Sequence[str] = ()) -> None:
    """Keeps a model folder as a version, whole or not at all, and drops all but the `newest` ones. The served version,
    the one before it and those `pinned` stay."""
    place = root / "versions" / version
    partial = place.with_name(f".{version}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    files = [f for f in sorted(folder.iterdir()) if f.is_file() and f.name != "manifest.json"]
    for file in files:
        try:
            os.link(file, partial / file.name)
        except OSError:  # another file system
            shutil.copy2(file, partial / file.name)
    described = {f.name: {"size": f.stat().st_size, "sha256": _sha256(f)} for f in files}
    write_json(partial / "manifest.json", {"time": time.time(), "files": described})
    shutil.rmtree(place, ignore_errors=True)
    partial.rename(place)
    stay = {version, *pinned, previous(root)}
    if (root / "current.json").exists():
        stay.add(resolve(root).version)
    for old in [v for v in kept(root)[:-newest] if v not in stay]:
        shutil.rmtree(root / "versions" / old)


def kept(root: Path) -> list[str]:
    """Names of the versions on disk, oldest first."""
    found = (root / "versions").glob("*/manifest.json")
    return [p.parent.name for p in sorted(found, key=lambda p: read_json(p)["time"])]


def verify(folder: Path, like: Path) -> None:
    """Refuses a version whose files are not those that were kept, or whose tensors do not fit an engine that was
    started from the folder `like`. Raises UserError; nothing has been touched by then."""
    manifest = read_json(folder / "manifest.json")
    for name, told in (manifest["files"] if manifest else {}).items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != told["size"] or _sha256(file) != told["sha256"]:
            raise UserError(
                f"{file}: missing, or not as it was written; train this version again or choose another"
            )
    ours, theirs = _shapes(folder), _shapes(like)
    if ours != theirs:
        wrong = sorted(n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n))
        raise UserError(
            f"{folder}: another architecture than what is served (for example {wrong[0]}: {ours.get(wrong[0])} instead of "
            f"{theirs.get(wrong[0])}); start `hero serve` again to serve it"
        )


def _shapes(folder: Path) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as tensors:
            found |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118 (not a dict)
    return found


def _sha256(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def point(root: Path, version: str, **why: Any) -> dict[str, Any]:
    """Moves the durable pointer (readers see the old or the new one) and logs it: who, why, metrics. Returns the row."""
    before = resolve(root).version if (root / "current.json").exists() else None
    stage, _, number = version.rpartition("-")
    write_json(root / "current.json", {"stage": stage, "version": int(number), "path": f"versions/{version}"})
    return log(root, **{"from": before, "to": version, "outcome": "promoted", **why})


def log(root: Path, **row: Any) -> dict[str, Any]:
    """Adds a row to the log of promotions."""
    row = {"time": time.time(), **row}
    append_row(root / "promotions.jsonl", row)
    return row


def promotions(root: Path) -> list[dict[str, Any]]:
    return read_jsonl(root / "promotions.jsonl")


def previous(root: Path) -> str | None:
    """The version that was served before the present one, by the log; going back twice goes back further."""
    if not (root / "current.json").exists():
        return None
    now = resolve(root).version
    moves = [p for p in promotions(root) if (p["outcome"], p["to"], p.get("back")) == ("promoted", now, None)]
    return moves[-1]["from"] if moves else None


def endpoint(root: Path) -> dict[str, str] | None:
    """URL and admin token of the endpoint that serves this run now; None if nothing listens there."""
    found = read_json(root / "endpoint.json")
    if found:
        try:
            httpx.get(f"{found['url']}/health", timeout=5)
        except httpx.ConnectError:
            return None
        except httpx.HTTPError:
            pass  # it lives, but is busy
    return found
