"""What an engine is given of one bucket of weights: how to fetch it and how to check it.

A payload is small and passes through the driver. The weights themselves go by a file, through Ray's
object store (as the second argument of `RolloutActor.update_weights`), over a link of the broadcast
transport, or by a handle of GPU memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import xxhash

from common.errors import UserError

PIECE = 1 << 18
"""Bytes that are read or written and hashed together: small enough to stay in a core's cache between."""

Kind = Literal["file", "object_store", "broadcast", "ipc"]


class TensorMeta(NamedTuple):
    """One tensor of a bucket."""

    name: str
    """Hugging Face name."""
    dtype: str
    """Name of a torch dtype, for example bfloat16."""
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * getattr(torch, self.dtype).itemsize


def meta_of(name: str, tensor: torch.Tensor) -> TensorMeta:
    return TensorMeta(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


@dataclass(frozen=True)
class WeightPayload:
    """One bucket of an update, or with `broadcast` all of them."""

    kind: Kind
    number: int = 0
    """Position of the bucket in the update. With number 0 an engine starts the update."""
    last: bool = True
    """With the last bucket an engine finishes the update."""
    digest: str = ""
    """Of the content: all tensors' bytes, or the whole file."""
    tensors: tuple[TensorMeta, ...] = ()
    """The content in order, unless a file says it itself."""
    path: str | None = None
    """File with the content, for the kind file."""
    handles: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """For the kind ipc: arguments that rebuild the sender's buffer, by the id of the GPU that it is on."""
    base: str | None = None
    """Folder of the model that the tensors are adapters of; None: they are whole weights."""

    def validate(self, arrays: Mapping[str, np.ndarray] | None = None) -> None:
        """Checks the content where that is possible without changing an engine. Raises UserError if the
        configuration is wrong, RuntimeError if the weights are not those that were sent (sending them
        again may help)."""
        if self.base is not None and not Path(self.base).is_dir():
            raise UserError(
                f"{self.base}: no such folder on the host of this engine, which needs the base model of the "
                "adapters; share the folder or leave sync.adapters_only out"
            )
        if self.path is not None:
            _validate_file(Path(self.path), self.digest)
        if self.kind == "object_store":
            names = [meta.name for meta in self.tensors]
            if arrays is None or list(arrays) != names:
                raise RuntimeError("weights from the object store: the names are not those that were sent")
            check_digest(digest(arrays.values()), self.digest, "weights from the object store")

    def update_info(self, arrays: Mapping[str, np.ndarray] | None = None) -> dict[str, Any]:
        """Fields of `actors.weights.backend.UpdateInfo`."""
        return {
            "kind": self.kind,
            "path": self.path,
            "digest": self.digest,
            "tensors": [tuple(meta) for meta in self.tensors],
            "arrays": arrays,
            "handles": dict(self.handles),
            "base": self.base,
        }


def digest(parts: Any) -> str:
    """Digest of arrays or CPU tensors, one after the other. Not cryptographic (XXH3): it is against
    torn, mixed up and lost data, and runs at the speed of memory."""
    hasher = xxhash.xxh3_128()
    for part in parts:
        hasher.update(byte_view(part).data)
    return hasher.hexdigest()


def check_digest(found: str, expected: str, what: str) -> None:
    """Raises RuntimeError if two digests differ."""
    if found != expected:
        raise RuntimeError(f"{what}: the content is not what was sent (digest {found}, not {expected})")


def byte_view(part: np.ndarray | torch.Tensor) -> np.ndarray:
    """The bytes of a contiguous array or CPU tensor, without copying them."""
    if isinstance(part, torch.Tensor):
        part = part.detach().contiguous().view(-1).view(torch.uint8).numpy()
    return part.reshape(-1).view(np.uint8)


def split(buffer: torch.Tensor, tensors: Sequence[TensorMeta]) -> list[tuple[str, torch.Tensor]]:
    """The tensors that lie one after the other in a buffer of bytes, as views of it where their alignment
    allows it."""
    result, offset = [], 0
    for meta in tensors:
        dtype = getattr(torch, meta.dtype)
        part = buffer[offset : offset + meta.nbytes]
        if part.data_ptr() % dtype.itemsize:
            part = part.clone()
        result.append((meta.name, part.view(dtype).view(meta.shape)))
        offset += meta.nbytes
    return result


def _validate_file(path: Path, expected: str) -> None:
    if not path.is_file():
        raise UserError(
            f"weights {path}: no such file; learners and engines must see the same directory: set "
            "learners.weights_dir to a folder on a file system that all hosts share, or sync.transport to "
            "object_store or broadcast"
        )
    check_digest(file_digest(path), expected, f"weights {path}")


def file_digest(path: Path) -> str:
    """Digest of a whole file."""
    hasher, buffer = xxhash.xxh3_128(), memoryview(bytearray(PIECE))
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(buffer):
            hasher.update(buffer[:size])
    return hasher.hexdigest()
