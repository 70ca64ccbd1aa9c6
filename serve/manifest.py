"""The manifest of a stored version: size and SHA-256 of every file, written when the version is
stored.

`verify` reads it before a version is promoted, so that an engine never loads changed or unsuitable
weights.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from safetensors import safe_open

from actors.weights.files import weight_files
from common.errors import UserError
from common.files import read_json, write_json

MANIFEST = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Describes the files of `folder`, which holds no folders and no manifest yet."""
    paths = sorted(folder.iterdir())
    files = {}
    for file, digest in zip(paths, _sha256_of(paths), strict=True):
        files[file.name] = {"size": file.stat().st_size, "sha256": digest}
    # Versions are ordered by this time, also where the next driver runs on a host whose clock is behind.
    earlier = [stored_at(path.parent) for path in folder.parent.glob(f"*/{MANIFEST}")]
    stored = max([time.time(), *(before + 0.001 for before in earlier)])
    write_json(folder / MANIFEST, {"time": stored, "files": files})


def stored_at(folder: Path) -> float:
    """When the version was stored, in seconds since 1970."""
    return float(read_json(folder / MANIFEST)["time"])


def verify(folder: Path, like: Path) -> None:
    """Checks a version before an engine loads it.

    Raises UserError if its files differ from the manifest, or if its tensors have other names or
    shapes than those of the folder `like`, from which the engine was started. A folder without a
    manifest (a plain model) has no files to compare.
    """
    manifest = read_json(folder / MANIFEST)
    if manifest:
        _check_files(folder, manifest["files"])
    _check_shapes(folder, like)


def _check_files(folder: Path, expected: dict[str, dict[str, Any]]) -> None:
    # The sizes first: they are read at once, and a file that was cut off needs no hash.
    for name, entry in expected.items():
        file = folder / name
        if not (file.is_file() and file.stat().st_size == entry["size"]):
            raise _changed(file)
    # A rollback, or another model of this process, needs a version that was hashed before.
    state = {name: _state(folder / name) for name in expected}
    if _intact.get(folder) == (expected, state):
        return
    names = list(expected)
    for name, digest in zip(names, _sha256_of([folder / name for name in names]), strict=True):
        if digest != expected[name]["sha256"]:
            raise _changed(folder / name)
    _intact[folder] = (expected, state)


_intact: dict[Path, tuple[dict[str, dict[str, Any]], dict[str, tuple[int, int, int]]]] = {}
"""Folders whose files had the hashes of their manifest, with the manifest and the state of the files then."""


def _state(file: Path) -> tuple[int, int, int]:
    """Differs once a file has been written to or replaced."""
    status = file.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _changed(file: Path) -> UserError:
    return UserError(
        f"{file}: missing, or changed since it was stored; train this version again or choose another"
    )


def _check_shapes(folder: Path, like: Path) -> None:
    new, served = _tensor_shapes(folder), _tensor_shapes(like)
    for name in sorted(new.keys() | served.keys()):
        if new.get(name) != served.get(name):
            raise UserError(
                f"{folder}: another architecture than the served model (for example {name}: "
                f"{new.get(name)} instead of {served.get(name)}); start `hero serve` again to serve it"
            )


def _tensor_shapes(folder: Path) -> dict[str, list[int]]:
    shapes = {}
    for file in weight_files(folder):
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                shapes[name] = tensors.get_slice(name).get_shape()
    return shapes


def _sha256_of(files: Sequence[Path]) -> list[str]:
    """Of several files at a time: hashing leaves Python, and the files of a model are many gigabytes."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(_sha256, files))


def _sha256(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
