"""The ipc transport: engines on the same GPU as a learner rank map a buffer of its memory (CUDA IPC).

Every rank sends, since each engine worker reads from the rank on its own GPU. The buffer is used again
for every bucket: the driver asks for the next bucket only after all engines have loaded this one, and an
engine copies what it maps before it answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from actors.weights.links import device_digest
from actors.weights.payload import Kind, TensorMeta, WeightPayload, check_digest, meta_of, split
from learners.named_tensors import NamedTensors


class IpcTransport:
    """Buckets in one buffer of each rank's GPU."""

    kind: Kind = "ipc"

    def __init__(self, max_bytes: int = 1 << 30, adapters_only: bool = False) -> None:
        self.max_bytes, self.adapters_only = max_bytes, adapters_only
        self._buffer: torch.Tensor | None = None

    def sends(self, rank: int) -> bool:
        return True

    def send(
        self, bucket: NamedTensors, version: int, number: int = 0, last: bool = True
    ) -> tuple[WeightPayload, None]:
        from torch.multiprocessing.reductions import reduce_tensor

        tensors = tuple(meta_of(name, tensor) for name, tensor in bucket)
        device = bucket[0][1].device
        size = sum(meta.nbytes for meta in tensors)
        if self._buffer is None or self._buffer.numel() < size:
            self._buffer = torch.empty(max(size, self.max_bytes), dtype=torch.uint8, device=device)
        buffer = self._buffer[:size]
        offset = 0
        for (_, tensor), meta in zip(bucket, tensors, strict=True):
            flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
            buffer[offset : offset + meta.nbytes].copy_(flat)
            offset += meta.nbytes
        digest = device_digest(buffer)
        # Engines read from other processes, which know nothing of this one's stream.
        torch.cuda.current_stream(device).synchronize()
        handles = {gpu_id(device): reduce_tensor(buffer)[1]}
        return WeightPayload("ipc", number, last, digest, tensors, handles=handles), None

    def close(self) -> None:
        """Returns the buffer's memory; called on the ranks when the last bucket has been loaded."""
        self._buffer = None
        torch.cuda.ipc_collect()


def merge_handles(payloads: Sequence[WeightPayload]) -> WeightPayload:
    """The payload for engines on all GPUs, of those that the ranks sent. Raises RuntimeError if two ranks
    sent different weights, or none of them from a GPU of their own."""
    first = payloads[0]
    handles: dict[str, tuple[Any, ...]] = {}
    for payload in payloads:
        if payload.digest != first.digest:
            raise RuntimeError("weights by ipc: two learner ranks hold different weights")
        handles.update(payload.handles)
    return replace(first, handles=handles)


def map_tensors(
    handles: Mapping[str, tuple[Any, ...]],
    digest: str,
    tensors: Sequence[TensorMeta],
    device: torch.device,
) -> list[tuple[str, torch.Tensor]]:
    """An engine worker's side: a copy of the bucket that the rank on this GPU holds, verified. Raises
    RuntimeError if there is no rank on this GPU, or the content is not what was sent."""
    from torch.multiprocessing.reductions import rebuild_cuda_tensor

    arguments = handles.get(gpu_id(device))
    if arguments is None:
        raise RuntimeError(
            f"weights by ipc: no learner rank is on GPU {gpu_id(device)} of this engine worker (they are on "
            f"{', '.join(handles)}); use cluster.layout: colocated or another sync.transport"
        )
    rebuilt = list(arguments)
    # The number of the device is that of the sender, whose CUDA_VISIBLE_DEVICES may differ.
    rebuilt[6] = device.index
    copy = rebuild_cuda_tensor(*rebuilt).clone()
    check_digest(device_digest(copy), digest, "weights by ipc")
    return split(copy, tensors)


def gpu_id(device: torch.device) -> str:
    """Id of a GPU that is the same in every process."""
    return str(torch.cuda.get_device_properties(device).uuid)
