"""The stored versions of a run's policy, and the durable pointer to the version that is served.

    RUN/versions/ppo-20/    a Hugging Face folder (hard links) with manifest.json
    RUN/current.json        the pointer: every replica loads this version and follows it afterwards
    RUN/promotions.jsonl    who moved the pointer, when, why, with which metrics
    RUN/endpoint.json       address and admin token of the running endpoint, readable by its owner

Training calls `store`. The pointer is moved by `serve.promotion`, or by training itself while no
endpoint serves the run.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import PARTIAL_SUFFIX, append_row, atomic_path, read_json, read_jsonl, write_json
from common.run_paths import RunPaths
from serve.manifest import MANIFEST, stored_at, write_manifest


@dataclass(frozen=True)
class ModelVersion:
    """A policy on disk."""

    folder: Path
    """Hugging Face folder."""
    name: str
    """Stage and number for a version of a run ("ppo-60"), else the name of the folder."""


def is_model(folder: Path) -> bool:
    """Whether this is a Hugging Face folder."""
    return (folder / "config.json").exists()


def current_policy(target: Path) -> ModelVersion:
    """The version that `target` serves now: the durable pointer of a run directory, or a model
    folder itself.

    Raises UserError if there is none, or if `target` is a run directory of an older layout.
    """
    if not target.is_dir():
        raise UserError(
            f"{target}: no such directory; expected a run directory (made by `hero run`) or a "
            "Hugging Face folder"
        )
    paths = RunPaths(target)
    paths.check_layout()
    if paths.current.exists():
        pointer = read_json(paths.current)
        folder = target / pointer["path"]
        if not is_model(folder):
            raise UserError(
                f"{paths.current}: points to {folder}, which is no model folder; "
                f"run the {pointer['stage']} stage again"
            )
        return ModelVersion(folder, f"{pointer['stage']}-{pointer['version']}")
    if is_model(target):
        return ModelVersion(target, target.name)
    raise UserError(
        f"{target}: nothing to serve yet (neither current.json nor config.json); "
        "`hero run` stores a policy at the end of its sft stage"
    )


def locate(target: Path, name: str) -> ModelVersion:
    """A version of a run ("ppo-20"), the model of one of its stages ("sft"), or any model folder,
    by name.

    Raises UserError if there is none of that name.
    """
    paths = RunPaths(target)
    for folder in (paths.version(name), paths.stage(name).model, Path(name)):
        if is_model(folder):
            return ModelVersion(folder, Path(name).name)
    versions = ", ".join(list_versions(target)) or "none"
    raise UserError(
        f"{name}: neither a version of {target} ({versions}) nor one of its stages nor a model folder"
    )


def list_versions(root: Path) -> list[str]:
    """Names of the stored versions, oldest first."""
    folders = []
    for manifest in RunPaths(root).versions.glob(f"*/{MANIFEST}"):
        if not manifest.parent.name.endswith(PARTIAL_SUFFIX):
            folders.append(manifest.parent)
    return [folder.name for folder in sorted(folders, key=stored_at)]


def store(root: Path, name: str, model: Path, newest: int, pinned: Sequence[str] = ()) -> None:
    """Stores a model folder as version `name`, then removes all versions but the `newest` ones.

    The served version, the one before it and those in `pinned` are kept as well. The version is
    complete or absent, whatever interrupts the call.
    """
    with atomic_path(RunPaths(root).version(name)) as partial:
        partial.mkdir()
        for file in model.iterdir():
            if file.is_file() and file.name != MANIFEST:
                _link_or_copy(file, partial / file.name)
        write_manifest(partial)
    _remove_old_versions(root, newest, {name, *pinned})


def _link_or_copy(file: Path, destination: Path) -> None:
    # A link needs no space while the stage still holds the file.
    try:
        os.link(file, destination)
    except OSError:  # another file system
        shutil.copy2(file, destination)


def _remove_old_versions(root: Path, newest: int, keep: set[str]) -> None:
    paths = RunPaths(root)
    if paths.current.exists():
        # The version before the served one is what a rollback needs.
        keep |= {current_policy(root).name, previous_version(root) or ""}
    for name in list_versions(root)[:-newest]:
        if name not in keep:
            shutil.rmtree(paths.version(name))
    # What a crash left of versions that were being stored. One driver at a time stores versions.
    for partial in paths.versions.glob(f"*{PARTIAL_SUFFIX}"):
        shutil.rmtree(partial)


def set_current(root: Path, name: str, **event: Any) -> dict[str, Any]:
    """Moves the durable pointer to a stored version and logs it. Readers see the old version or the
    new one.

    `event` says who, why and with which metrics. Returns the logged row.
    """
    paths = RunPaths(root)
    before = None
    if paths.current.exists():
        before = current_policy(root).name
    stage, _, number = name.rpartition("-")
    path = paths.version(name).relative_to(root)
    write_json(paths.current, {"stage": stage, "version": int(number), "path": str(path)})
    return append_event(root, **{"from": before, "to": name, "outcome": "promoted", **event})


def append_event(root: Path, **event: Any) -> dict[str, Any]:
    """Adds a row to the log of promotions, with the time, and returns it."""
    row = {"time": time.time(), **event}
    append_row(RunPaths(root).promotions, row)
    return row


def list_promotions(root: Path) -> list[dict[str, Any]]:
    """The rows of the log of promotions, oldest first."""
    return read_jsonl(RunPaths(root).promotions)


def previous_version(root: Path) -> str | None:
    """The version that was served before the present one, by the log; None if the log has none."""
    if not RunPaths(root).current.exists():
        return None
    current = current_policy(root).name
    for row in reversed(list_promotions(root)):
        # Rollbacks do not count, so that a second rollback goes back further instead of forward
        # again.
        if row["outcome"] == "promoted" and row["to"] == current and not row.get("rollback"):
            before: str | None = row["from"]
            return before
    return None


def live_endpoint(root: Path) -> dict[str, str] | None:
    """URL and admin token of the endpoint that serves this run now; None if no process listens
    there."""
    import httpx  # here, because `hero plan` imports this module and has to start fast

    endpoint: dict[str, str] | None = read_json(RunPaths(root).endpoint)
    if endpoint is None:
        return None
    try:
        # Not through a proxy of the environment, which answers also where nothing listens.
        httpx.get(f"{endpoint['url']}/health", timeout=5, trust_env=False)
    except httpx.ConnectError:
        return None
    except httpx.HTTPError:
        pass  # a process listens, but is busy
    return endpoint
