"""The process group of the learner ranks: joining it, and sums over it."""

from __future__ import annotations

import os
from collections.abc import Sequence

import deepspeed
import torch
import torch.distributed as dist


def join_process_group(rank: int, ranks: int, address: str, port: int, threads: int) -> None:
    """Makes this process one rank of the learners' process group (gloo on CPU, NCCL on GPU)."""
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(ranks),
        LOCAL_RANK="0",
        LOCAL_SIZE="1",
        MASTER_ADDR=address,
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(threads)
    # Where there is a compiler DeepSpeed would build a shared-memory all-reduce at first use: half a minute for each new
    # machine, and arithmetic that depends on it. Gloo alone serves everywhere.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo", verbose=False)


def summed_over_ranks(values: Sequence[float]) -> list[float]:
    """Element-wise sum over the process group, in float64."""
    total = torch.tensor(values, dtype=torch.float64)
    if torch.cuda.is_available():
        total = total.cuda()
    dist.all_reduce(total)
    return total.tolist()
