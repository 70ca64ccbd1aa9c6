"""Where the optimizer state of each parameter is on this rank, whatever the ZeRO stage.

DeepSpeed steps on flat float32 tensors that hold pieces of many parameters: all of them (stage 0), one
rank's part of their concatenation (1 and 2), or the part of each (3). A fragment says which entries of
which parameter a piece of a flat tensor is, so that `learners.state_files` can write what is here and
read it into other pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Fragment:
    """Entries `start` to `start + size` of a flattened parameter are those from `offset` on of `flat`."""

    name: str
    start: int
    size: int
    flat: Tensor
    """The float32 master weights that the optimizer steps on, and the key of its state."""
    offset: int

    def of(self, flat: Tensor) -> Tensor:
        """The piece in a flat tensor of the same layout, such as a moment."""
        return flat.view(-1)[self.offset : self.offset + self.size]


def fragments(engine: Any) -> list[Fragment]:
    """Those of all trained parameters on this rank of DeepSpeed's `engine`; together the ranks have each
    entry once."""
    named = [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]
    optimizer = engine.optimizer
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        return list(_of_stage_3(optimizer, named))
    if hasattr(optimizer, "single_partition_of_fp32_groups"):
        return list(_of_partitions(optimizer.single_partition_of_fp32_groups, named))
    if hasattr(optimizer, "fp32_groups_flat_partition"):
        return list(_of_partitions(optimizer.fp32_groups_flat_partition, named))
    # Without ZeRO all ranks have the same.
    return replicas(engine) if dist.get_rank() == 0 else []


def replicas(engine: Any) -> list[Fragment]:
    """As `fragments`, but with what this rank shares with others: without ZeRO all of the model."""
    if engine.zero_optimization_stage():
        return fragments(engine)
    # In bfloat16 each parameter has a master of its own, in float32 it is its own master.
    masters: dict[int, Tensor] = {}
    for weights, of_weights in zip(
        getattr(engine.optimizer, "fp16_groups", ()),
        getattr(engine.optimizer, "fp32_groups", ()),
        strict=True,
    ):
        masters.update((id(weight), master) for weight, master in zip(weights, of_weights, strict=True))
    found = []
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            found.append(Fragment(name, 0, parameter.numel(), masters.get(id(parameter), parameter), 0))
    return found


def weight_fragments(module: nn.Module, writes: bool) -> list[Fragment]:
    """Those of the weights that this rank holds, frozen ones too, without an optimizer: its shards under
    ZeRO-3, else whole parameters. With `writes` whole ones on rank 0 alone."""
    found = []
    for name, parameter in module.named_parameters():
        if hasattr(parameter, "ds_tensor"):
            shard = parameter.ds_tensor.data
            start, size = _own_part(parameter)
            found.append(Fragment(name, start, size, shard, 0))
        elif not writes or dist.get_rank() == 0:
            found.append(Fragment(name, 0, parameter.numel(), parameter.data, 0))
    return found


@torch.no_grad()
def refresh_weights(engine: Any) -> None:
    """Sets the weights of the model to the float32 masters, which have just been read."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        for parameter in engine.module.parameters():
            if parameter.requires_grad:
                master, _ = optimizer._get_fp32_opt_state_partition(parameter, release_swap_buffers=False)
                parameter.ds_tensor.data.copy_(master)
    elif hasattr(optimizer, "update_lp_params"):
        optimizer.update_lp_params()
    elif not engine.zero_optimization_stage():
        by_name = dict(engine.module.named_parameters())
        for fragment in replicas(engine):
            by_name[fragment.name].data.copy_(fragment.flat.data)


def _of_stage_3(optimizer: Any, named: list[tuple[str, nn.Parameter]]) -> Iterator[Fragment]:
    for name, parameter in named:
        group, offset, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start, size = _own_part(parameter)
        yield Fragment(name, start, size, optimizer.fp32_partitioned_groups_flat[group], offset)


def _own_part(parameter: Any) -> tuple[int, int]:
    """(first entry, number of entries) of this rank's shard of a parameter, without padding."""
    size = parameter.ds_tensor.numel()
    start = dist.get_rank(group=parameter.ds_process_group) * size
    return start, max(0, min(size, parameter.ds_numel - start))


def _of_partitions(flats: list[Tensor], named: list[tuple[str, nn.Parameter]]) -> Iterator[Fragment]:
    for name, parameter in named:
        mapping: Any = getattr(parameter, "_hp_mapping", None)
        if mapping is not None:  # else it is on other ranks
            address = mapping.get_hp_fragment_address()
            start = mapping.lp_fragment_address.start
            yield Fragment(name, start, address.numel, flats[mapping.param_group_index], address.start)
