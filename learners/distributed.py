"""The process group of the learner ranks: joining it, and sums over it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

from learners.rendezvous import Rendezvous
from learners.sequence_parallel import is_first_of_group, join_sequence_groups

COLLECTIVE_TIMEOUT = timedelta(minutes=30)


def join_process_group(
    rank: int,
    ranks: int,
    rendezvous: Rendezvous,
    threads: int,
    timeout_s: float = 120.0,
    device: str = "cpu",
    *,
    sequence_parallel: int = 1,
) -> None:
    """Makes this process one rank of the learners' process group (gloo on cpu, NCCL on cuda), and of a group
    of `sequence_parallel` ranks that share their rows. Raises FleetError if not every rank has come to the
    rendezvous within `timeout_s`."""
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(ranks),
        LOCAL_RANK="0",
        LOCAL_SIZE="1",
        MASTER_ADDR=rendezvous.address,
        MASTER_PORT=str(rendezvous.port),
    )
    torch.set_num_threads(threads)
    # With a compiler present DeepSpeed would build a shared-memory all-reduce at first use: half
    # a minute on each new machine, and arithmetic that depends on the machine. Gloo works
    # everywhere.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if device == "cuda" else "gloo"
    if backend == "gloo":
        # DeepSpeed's Muon would compile its iteration, which needs a C++ compiler and takes minutes,
        # and gains nothing on a CPU.
        torch._dynamo.config.disable = True
    store = rendezvous.meet(rank, ranks, timeout_s)
    options: dict[str, Any] = {}
    # As DeepSpeed does: bound to its device, a group finds out at once that two ranks share a GPU.
    if backend == "nccl" and ranks > 1:
        options["device_id"] = torch.device("cuda", 0)
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=ranks, timeout=COLLECTIVE_TIMEOUT, **options
    )
    deepspeed.init_distributed(dist_backend=backend, verbose=False)
    join_sequence_groups(sequence_parallel)


def on_gpu() -> bool:
    """Whether this rank computes on a GPU: that of its process group, not what the host happens to have."""
    return dist.is_initialized() and dist.get_backend() == "nccl"


def all_reduce_sum(tensor: Tensor, device: torch.device) -> Tensor:
    """The element-wise sum over all ranks, on the CPU; ranks that share rows hold the same and count once.
    `device` is where the process group's backend needs its input."""
    on_device = tensor.to(device)
    if not is_first_of_group():
        on_device = torch.zeros_like(on_device)
    dist.all_reduce(on_device)
    return on_device.cpu()


def summed_over_ranks(values: Sequence[float]) -> list[float]:
    """Element-wise sum over the process group, in float64; ranks that share rows count once."""
    total = torch.tensor(values, dtype=torch.float64)
    if not is_first_of_group():
        total.zero_()
    if on_gpu():
        total = total.cuda()
    dist.all_reduce(total)
    return total.tolist()


class MetricSums:
    """Sums of quantities over the micro-batches of this rank, for means over all ranks."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        for name, value in values.items():
            if isinstance(value, Tensor):
                value = value.detach()
            self.sums[name] = self.sums.get(name, 0.0) + float(value)

    def means(self, count: float) -> dict[str, float]:
        """The sums over all ranks, divided by `count`. Every rank must have added the same
        names."""
        names = sorted(self.sums)
        totals = summed_over_ranks([self.sums[name] for name in names])
        return {name: total / count for name, total in zip(names, totals, strict=True)}
