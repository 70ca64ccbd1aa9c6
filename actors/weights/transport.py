"""The sending half of weight transfer: one bucket of weights after the other leaves the learners.

    learner ranks ──WeightTransport.send──► WeightPayload ──driver──► `actors.weights.vllm.load_bucket`

The transports, chosen by `sync.transport`:

    file           a safetensors file for each bucket, in a folder that learners and engines see
    object_store   arrays that a learner returns to Ray, which moves them to the engines' hosts
    broadcast      links of rank 0 to the workers of each engine (`actors.weights.links`)
    ipc            a buffer of GPU memory that engines on the same GPU map (`actors.weights.ipc`)

The learners' side is an object with `send`; broadcast needs both sides at the same time and has methods
of its own (`actors.learner.LearnerActor.broadcast_weights`). An engine knows what to do from the payload
alone (`actors.weights.backend`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xxhash

from actors.weights.payload import PIECE, Kind, WeightPayload, byte_view, digest, meta_of
from common.files import atomic_path
from common.run_paths import RunPaths
from learners.named_tensors import NamedTensors

SHARED_MEMORY = Path("/dev/shm")

SAFETENSORS_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}

Sent = tuple[WeightPayload | None, Any]
"""The payload of a bucket, and what goes to the engines through Ray's object store beside it."""


class WeightTransport(Protocol):
    """Sends buckets from the learners to every engine. Given to the learner ranks by pickle."""

    kind: Kind
    max_bytes: int
    """Size of a bucket."""
    adapters_only: bool
    """Whether the adapters of a policy are sent in place of its weights."""

    def send(self, bucket: NamedTensors, version: int, number: int, last: bool) -> Sent:
        """Called on the ranks that `sends` names with the tensors of one bucket, which are gone
        afterwards."""
        ...

    def sends(self, rank: int) -> bool:
        """Whether this rank sends; the others only take part in gathering."""
        ...

    def close(self) -> None:
        """Removes what was sent."""
        ...


class FileTransport:
    """One safetensors file for each bucket, in a directory that every learner and engine can see.

    A bucket's file is deleted when the one after the next is written, since engines have loaded it by
    then: at most two lie in the directory, so that a folder in shared memory stays small.
    """

    kind: Kind = "file"

    def __init__(self, directory: str | Path, max_bytes: int = 1 << 30, adapters_only: bool = False) -> None:
        self.directory, self.max_bytes, self.adapters_only = Path(directory), max_bytes, adapters_only

    def sends(self, rank: int) -> bool:
        return rank == 0

    def send(
        self, bucket: NamedTensors, version: int, number: int = 0, last: bool = True
    ) -> tuple[WeightPayload, None]:
        path = self.directory / f"{version:08d}-{number:05d}.safetensors"
        # Not flushed to the disk: after a power failure a restarted run sends its weights again.
        with atomic_path(path, durable=False) as partial:
            digest = write_safetensors(partial, bucket)
        self._remove_old()
        return WeightPayload("file", number, last, digest, path=str(path)), None

    def close(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

    def _remove_old(self) -> None:
        # By time, not by version: a run that restarts from a checkpoint sends lower versions again.
        files = list(self.directory.glob("*.safetensors"))
        files.sort(key=lambda path: path.stat().st_mtime_ns)
        for old in files[:-2]:
            old.unlink()


class ObjectStoreTransport:
    """Buckets as arrays that a learner returns: Ray keeps them in the object store of the learner's host
    and moves them to the hosts of engines that ask for them. The driver holds references alone (Ray
    inlines an object of less than 100 KB)."""

    kind: Kind = "object_store"

    def __init__(self, max_bytes: int = 1 << 30, adapters_only: bool = False) -> None:
        self.max_bytes, self.adapters_only = max_bytes, adapters_only

    def sends(self, rank: int) -> bool:
        return rank == 0

    def send(
        self, bucket: NamedTensors, version: int, number: int = 0, last: bool = True
    ) -> tuple[WeightPayload, dict[str, np.ndarray]]:
        tensors = tuple(meta_of(name, tensor) for name, tensor in bucket)
        # Views: Ray copies them into the object store when this call returns. The memory of tensors that
        # ZeRO-3 has gathered lives as long as the views do.
        arrays = {name: byte_view(tensor.detach().cpu()) for name, tensor in bucket}
        payload = WeightPayload("object_store", number, last, digest(arrays.values()), tensors)
        return payload, arrays

    def close(self) -> None:
        pass


def write_safetensors(path: Path, bucket: NamedTensors) -> str:
    """Writes a safetensors file and returns the digest of its content.

    The library's own function copies every tensor into one more buffer before it writes.
    """
    header: dict[str, Any] = {}
    offset = 0
    # Wide types first, so that every tensor lies at a multiple of its element size.
    bucket = sorted(bucket, key=lambda entry: -entry[1].element_size())
    for name, tensor in bucket:
        meta = meta_of(name, tensor)
        header[name] = {
            "dtype": SAFETENSORS_DTYPES[meta.dtype],
            "shape": list(meta.shape),
            "data_offsets": [offset, offset + meta.nbytes],
        }
        offset += meta.nbytes
    text = json.dumps(header).encode()
    # The data start at a multiple of 8 bytes, as the format asks for.
    text += b" " * (-len(text) % 8)
    hasher = xxhash.xxh3_128()
    with open(path, "wb", buffering=0) as file:
        for part in (len(text).to_bytes(8, "little"), text):
            file.write(part)
            hasher.update(part)
        for _, tensor in bucket:
            data = byte_view(tensor.detach().cpu()).data
            while data:
                written = file.write(data[:PIECE])
                hasher.update(data[:written])
                data = data[written:]
    return hasher.hexdigest()


def weights_directory(run_root: Path, weights_dir: str | None) -> Path:
    """Folder of a run's weight files, of its own (`close` deletes it), under `weights_dir`, or without
    one in shared memory, or where there is none in the run directory."""
    folder = "zero2hero-" + hashlib.sha256(str(run_root.absolute()).encode()).hexdigest()[:12]
    # A name of its own, because several runs may use one weights_dir or one machine.
    if weights_dir is not None:
        return Path(weights_dir) / folder
    if SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK):
        return SHARED_MEMORY / folder
    return RunPaths(run_root).weights


def choose_transport(
    requested: str, device: str, colocated: bool, hosts: int, weights_dir: str | None
) -> Kind:
    """The transport that `sync.transport` means.

    auto: on GPUs a transport that does not leave them (ipc where learners and engines share GPUs, else
    broadcast); on CPU files, which all processes of one host see and those of several hosts only with
    `weights_dir`; else the object store.
    """
    if requested != "auto":
        return requested  # type: ignore[return-value]
    if device == "cuda":
        return "ipc" if colocated else "broadcast"
    if hosts == 1 or weights_dir is not None:
        return "file"
    return "object_store"
