"""The sending half of weight transfer, with its one transport: files that all processes share.

    learner ranks ──WeightTransport.send──► WeightPayload ──Ray──► `actors.weights.vllm.apply_update`

The payload is small: it says where the weights are and how to check them, and reaches the engine as
an argument of `update_weights`. The engine has no transport object, so what it must know of one is
in the payload's two methods. A further transport (NCCL, CUDA IPC) needs a class like
`FileTransport`, a payload like `FilePayload` and a vLLM backend like `actors.weights.file_backend`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file

from common.errors import UserError
from common.files import atomic_path
from common.run_paths import RunPaths

FILE_BACKEND = "zero2hero_file"
"""Name under which vLLM knows `actors.weights.file_backend`."""
SHARED_MEMORY = Path("/dev/shm")
MAX_HEADER_BYTES = 1 << 27


class WeightPayload(Protocol):
    """What an engine needs to fetch sent weights."""

    def validate(self) -> None:
        """Called before an engine is changed. Raises UserError if the configuration is wrong,
        RuntimeError if the weights are not those that were sent (sending them again may help)."""
        ...

    def update_info(self) -> dict[str, Any]:
        """Fields of the `WeightTransferUpdateInfo` of the transport's vLLM backend."""
        ...


class WeightTransport(Protocol):
    """Moves weights from the learners to every engine. Sent to the learner ranks by pickle."""

    def send(
        self, named_tensors: Iterable[tuple[str, torch.Tensor]], rank: int, version: int
    ) -> WeightPayload | None:
        """Called on every learner rank with the same names in the same order, since reading a
        weight of ZeRO-3 is a collective operation. Returns the payload on rank 0, None on the
        others."""
        ...

    def close(self) -> None:
        """Removes what was sent."""
        ...


@dataclass(frozen=True)
class FilePayload:
    """A safetensors file, with what identifies its content."""

    path: str
    size: int
    """Bytes."""
    header_digest: str
    """SHA-256 of the header: all names, types, shapes and offsets."""

    def validate(self) -> None:
        path = Path(self.path)
        if not path.is_file():
            raise UserError(
                f"weights {path}: no such file; learners and engines must see the same directory: set "
                "learners.weights_dir to a folder on a file system that all hosts share"
            )
        size = path.stat().st_size
        if size != self.size:
            message = f"{size} bytes, expected {self.size}; the file is incomplete"
            raise RuntimeError(f"weights {path}: {message}")
        # The header alone: for the content the engine would have to read the file twice.
        if _header_digest(path) != self.header_digest:
            raise RuntimeError(f"weights {path}: its names and shapes are not those that were sent")

    def update_info(self) -> dict[str, Any]:
        return file_update_info(self.path)


class FileTransport:
    """One file for each version, in a directory that every learner and engine can see. Keeps the
    `keep` newest."""

    def __init__(self, directory: str | Path, keep: int = 2) -> None:
        self.directory, self.keep = Path(directory), keep

    def send(
        self, named_tensors: Iterable[tuple[str, torch.Tensor]], rank: int, version: int
    ) -> FilePayload | None:
        tensors: dict[str, torch.Tensor] = {}
        for name, tensor in named_tensors:
            if rank != 0:
                continue  # the iteration itself takes part in the gathers of ZeRO-3
            on_cpu = tensor.detach().cpu().contiguous()
            # On CPU the line above copies nothing, and a gathered ZeRO-3 weight is freed at the
            # next step of the iteration.
            if on_cpu.is_set_to(tensor) and not outlives_gather(tensor):
                on_cpu = on_cpu.clone()
            tensors[name] = on_cpu
        if rank != 0:
            return None
        path = self.directory / f"{version:08d}.safetensors"
        # Not flushed to the disk: after a power failure a restarted run sends its weights again.
        with atomic_path(path, durable=False) as partial:
            save_file(tensors, partial)
        self._remove_old()
        return FilePayload(str(path), path.stat().st_size, _header_digest(path))

    def close(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

    def _remove_old(self) -> None:
        # By time, not by version: a run that restarts from a checkpoint sends lower versions again.
        files = list(self.directory.glob("*.safetensors"))
        files.sort(key=lambda path: path.stat().st_mtime_ns)
        for old in files[: -self.keep]:
            old.unlink()


def make_transport(run_root: Path, weights_dir: str | None) -> FileTransport:
    """The transport of a run. Its files are in a folder of their own (`close` deletes it) under
    `weights_dir`, or without one in shared memory, or where there is none in the run directory."""
    folder = "zero2hero-" + hashlib.sha256(str(run_root.absolute()).encode()).hexdigest()[:12]
    # A name of its own, because several runs may use one weights_dir or one machine.
    if weights_dir is not None:
        return FileTransport(Path(weights_dir) / folder)
    if SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK):
        return FileTransport(SHARED_MEMORY / folder)
    return FileTransport(RunPaths(run_root).weights)


def file_update_info(path: str | Path) -> dict[str, Any]:
    """Fields of `actors.weights.file_backend.FileUpdateInfo` for a safetensors file or a folder of
    such files."""
    return {"path": str(path)}


def outlives_gather(tensor: torch.Tensor) -> bool:
    """Whether the tensor stays valid after the step of the iteration that yielded it. A ZeRO-3
    parameter (DeepSpeed marks it with `ds_id`) does not: its values are gathered for this step and
    freed after it."""
    return not hasattr(tensor, "ds_id")


def _header_digest(path: Path) -> str:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return hashlib.sha256(file.read(min(length, MAX_HEADER_BYTES))).hexdigest()
