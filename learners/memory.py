"""Frees the device memory of a learner between its turns, and gives it back with the same bits.

Where learners and rollout engines share GPUs, each phase of an iteration needs the memory that the
other one held. DeepSpeed's own `offload_states` refuses torch's AdamW under ZeRO-3 and does not exist
for ZeRO-0, so what an engine holds is moved here by its storages, the same way for every stage: a
storage is copied to the host and shrunk to nothing, and later grown and filled again. All views of it
stay what they were: the flat buffers that DeepSpeed cuts parameters, masters and gradients from need
not be known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

What = Literal["states", "weights", "all"]
"""states: moments and float32 masters of the optimizer, gradients, averages. weights: parameters and
buffers, which a sync still needs when the states are gone. all: both."""


class MemorySwap:
    """What one DeepSpeed engine, with the average of its weights, holds on its device."""

    def __init__(self, engine: Any) -> None:
        """`engine` is DeepSpeed's."""
        self._engine = engine
        self._further: list[Tensor] = []
        self._swapped: dict[str, list[_SwappedStorage]] = {"states": [], "weights": []}
        # Host memory is kept for the next turn: pinning it takes longer than the copy.
        self._pool: dict[int, list[Tensor]] = defaultdict(list)

    def track(self, tensors: Iterable[Tensor]) -> None:
        """Counts further tensors as states."""
        self._further += tensors

    def require(self, what: What) -> None:
        """Raises RuntimeError if this part is not on the device."""
        away = [part for part in _parts(what) if self._swapped[part]]
        if away:
            raise RuntimeError(f"the learner's {' and '.join(away)} are offloaded; reload them first")

    @torch.no_grad()
    def offload(self, what: What) -> None:
        """Moves this part to the host; what is there already stays. Device memory is free on return."""
        if not self._swapped["weights"] and hasattr(self._engine.optimizer, "empty_partition_cache"):
            # Parameters that ZeRO-3 gathered for a forward pass.
            self._engine.optimizer.empty_partition_cache()
        _synchronize(self._engine.device)
        storages = self._storages()
        for part in _parts(what):
            if not self._swapped[part]:
                moved = [_SwappedStorage(storage, self._pool) for storage in storages[part]]
                _synchronize(self._engine.device)
                for swapped in moved:
                    swapped.free()
                self._swapped[part] = moved
        _release_cache(self._engine.device)

    @torch.no_grad()
    def reload(self, what: What) -> None:
        """Moves this part back, to the last bit; what is on the device already stays."""
        for part in _parts(what):
            moved, self._swapped[part] = self._swapped[part], []
            for swapped in moved:
                swapped.restore()
            _synchronize(self._engine.device)
            for swapped in moved:
                self._pool[swapped.size].append(swapped.content)

    def held(self) -> dict[str, int]:
        """Bytes on the device, by part."""
        storages = self._storages()
        return {part: sum(storage.nbytes() for storage in storages[part]) for part in storages}

    def _storages(self) -> dict[str, list[torch.UntypedStorage]]:
        """The storages on the device of each part; none is in both."""
        module: nn.Module = self._engine.module
        weights = [*module.buffers()]
        states: list[Tensor] = list(self._further)
        for parameter in module.parameters():
            # Under ZeRO-3 the parameter is empty, or gathered, and its shard is beside it.
            weights += [parameter.data, getattr(parameter, "ds_tensor", parameter.data)]
            if parameter.grad is not None:
                states.append(parameter.grad)
        states += _reachable_tensors([self._engine.optimizer, self._engine.basic_optimizer])
        of_weights = self._on_device(weights, set())
        of_states = self._on_device(states, {storage.data_ptr() for storage in of_weights})
        return {"weights": of_weights, "states": of_states}

    def _on_device(self, tensors: Iterable[Tensor], taken: set[int]) -> list[torch.UntypedStorage]:
        storages = {}
        for tensor in tensors:
            storage = tensor.untyped_storage()
            # Weights that are mapped from a file cannot shrink, and cost no memory of their own.
            is_movable = storage.device.type == self._engine.device.type and storage.resizable()
            if is_movable and storage.nbytes() and storage.data_ptr() not in taken:
                storages[storage.data_ptr()] = storage
        return list(storages.values())


class _SwappedStorage:
    """A storage and its content on the host."""

    def __init__(self, storage: torch.UntypedStorage, pool: dict[int, list[Tensor]]) -> None:
        self.storage, self.size = storage, storage.nbytes()
        if pool[self.size]:
            self.content = pool[self.size].pop()
        else:
            is_cuda = storage.device.type == "cuda"
            self.content = torch.empty(self.size, dtype=torch.uint8, pin_memory=is_cuda)
        self.content.copy_(self._bytes(), non_blocking=True)

    def free(self) -> None:
        self.storage.resize_(0)

    def restore(self) -> None:
        self.storage.resize_(self.size)
        self._bytes().copy_(self.content, non_blocking=True)

    def _bytes(self) -> Tensor:
        return torch.empty(0, dtype=torch.uint8, device=self.storage.device).set_(self.storage)


def device_memory(device: torch.device) -> dict[str, int]:
    """Bytes of the device: `allocated` and `reserved` by this process, `free` for all. Empty for the
    CPU, whose memory nobody takes turns on."""
    if device.type != "cuda":
        return {}
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "free": torch.cuda.mem_get_info(device)[0],
    }


def _parts(what: What) -> tuple[str, ...]:
    return ("states", "weights") if what == "all" else (what,)


def _reachable_tensors(roots: Iterable[Any]) -> Iterator[Tensor]:
    """Tensors that optimizers hold, in attributes, containers and DeepSpeed's own small objects."""
    pending, seen = list(roots), set()
    while pending:
        item = pending.pop()
        if id(item) in seen or isinstance(item, (nn.Module, str, bytes)):
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            yield item
            if item.grad is not None:
                yield item.grad
        elif isinstance(item, dict):
            pending += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple, set, frozenset)):
            pending += item
        elif _is_of_an_optimizer(item):
            pending += vars(item).values()


def _is_of_an_optimizer(item: Any) -> bool:
    name = type(item).__module__
    return hasattr(item, "__dict__") and name.startswith(
        ("deepspeed.runtime", "deepspeed.ops", "torch.optim")
    )


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _release_cache(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
