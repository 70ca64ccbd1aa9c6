"""The sending half of weight transfer: writes the learner's weights where every engine can read them."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from common.errors import UserError

BACKEND = "zero2hero_file"


class Transport(Protocol):
    """The sending half."""

    backend: str
    """Name of the vLLM weight-transfer backend that receives."""

    def send(
        self, named_tensors: Iterable[tuple[str, torch.Tensor]], rank: int, version: int
    ) -> dict[str, Any]:
        """Called on every learner rank with the same names in the same order; returns the engines' payload."""
        ...


class FileTransport:
    """One file per version in a directory that every learner and engine can see."""

    backend = BACKEND

    def __init__(self, directory: str | Path, keep: int = 2) -> None:
        self.directory, self.keep = Path(directory), keep

    def send(
        self, named_tensors: Iterable[tuple[str, torch.Tensor]], rank: int, version: int
    ) -> dict[str, Any]:
        held: dict[str, torch.Tensor] = {}
        for name, tensor in named_tensors:
            if rank == 0:
                # Under ZeRO-3 the whole tensor lives only while it is yielded; elsewhere this copies nothing on CPU.
                gathered = tensor.detach().cpu().contiguous()
                held[name] = (
                    gathered.clone() if gathered.is_set_to(tensor) and not _owns(tensor) else gathered
                )
        path = self.directory / f"{version:08d}.safetensors"
        if rank == 0:
            self.directory.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{os.getpid()}.partial")
            save_file(held, partial)
            partial.replace(path)
            for old in sorted(self.directory.glob("*.safetensors"), key=lambda p: p.stat().st_mtime_ns)[
                : -self.keep
            ]:
                old.unlink()
            return {"path": str(path), "size": path.stat().st_size, "header": _header_digest(path)}
        return {}

    def close(self) -> None:
        """Removes what was sent."""
        shutil.rmtree(self.directory, ignore_errors=True)


def _owns(tensor: torch.Tensor) -> bool:
    """Whether the tensor will outlive the step of the iteration that yielded it (not so for gathered ZeRO-3 shards)."""
    return not hasattr(tensor, "ds_id")


def make_transport(name: str, run: Path) -> FileTransport:
    """The transport of a run. Shared memory where there is some, else the run directory."""
    if name != "file":
        raise UserError(f"learners.transport={name}: not known; use file")
    shared = Path("/dev/shm")
    tag = hashlib.sha256(str(run.absolute()).encode()).hexdigest()[:12]
    local = shared.is_dir() and os.access(shared, os.W_OK) and not os.environ.get("HERO_WEIGHTS_DIR")
    return FileTransport(
        shared / f"zero2hero-{tag}" if local else Path(os.environ.get("HERO_WEIGHTS_DIR", run / "weights"))
    )


def validate_payload(payload: dict[str, Any]) -> None:
    """Refuses, before an engine is touched, a file that is missing (UserError: a matter of configuration) or not what was sent
    (RuntimeError: sending it again may help)."""
    path = Path(payload["path"])
    if not path.is_file():
        raise UserError(
            f"weights {path}: no such file; learners and engines must see the same directory (HERO_WEIGHTS_DIR)"
        )
    if path.stat().st_size != payload["size"]:
        raise RuntimeError(
            f"weights {path}: {path.stat().st_size} bytes, expected {payload['size']}; the file is incomplete"
        )
    if _header_digest(path) != payload["header"]:
        raise RuntimeError(f"weights {path}: its names and shapes are not those that were sent")


def _header_digest(path: Path) -> str:
    """Digest of a safetensors header: all names, types, shapes and places."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return hashlib.sha256(file.read(min(length, 1 << 27))).hexdigest()


def stored_tensors(path: str) -> Iterable[tuple[str, torch.Tensor]]:
    """(name, tensor) of a safetensors file, or of all such files of a folder."""
    for file in sorted(Path(path).glob("*.safetensors")) if Path(path).is_dir() else [path]:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                yield name, tensors.get_tensor(name)
