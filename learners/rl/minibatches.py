"""How PPO cuts a batch of responses: epochs into minibatches (one optimizer step each),
minibatches into the micro-batches that one rank runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.random_streams import Stream, generator
from learners.data.batching import PackedBatch
from learners.data.samples import Samples
from learners.task import TaskContext


@dataclass(frozen=True)
class MicroBatch:
    """Some responses, with their prompts, as one forward pass takes them; the target mask marks
    the response tokens."""

    indices: list[int]
    """Which responses of the batch, in the order in which their tokens come in the rows. May be
    empty."""
    packed: PackedBatch


@dataclass(frozen=True)
class Minibatch:
    """The responses of one optimizer step. Counts are over all ranks, micro-batches are this
    rank's."""

    micro_batches: list[MicroBatch]
    num_tokens: float
    """Response tokens."""
    loss_size: float
    """What the policy's loss is divided by; see `learners.rl.losses.aggregation_size`."""


def minibatch_indices(seed: int, version: int, epoch: int, size: int, count: int) -> list[np.ndarray]:
    """The responses of a batch of `size`, shuffled and cut into `count` minibatches (fewer if
    there are fewer responses): the same on every rank."""
    # Drawn by each rank itself: equal arguments give equal orders, so nothing is communicated.
    order = generator(seed, Stream.PPO_MINIBATCHES, version, epoch).permutation(size)
    return np.array_split(order, min(count, size))


def response_micro_batches(
    samples: Samples, indices: Sequence[int], context: TaskContext
) -> list[MicroBatch]:
    """This rank's micro-batches of the responses at `indices`."""
    packing = context.learner.packing
    micro_batches = []
    for positions in context.micro_batches(samples.lengths_B[list(indices)], packing):
        own = [indices[i] for i in positions]
        targets = []
        for b in own:
            targets.append(np.arange(samples.lengths_B[b]) >= samples.prompt_lengths_B[b])
        packed = context.pack([samples.sequence(b) for b in own], targets, packing)
        micro_batches.append(MicroBatch([own[i] for i in packed.order], packed))
    return micro_batches


def predecessor_mask(target_mask_RT: Tensor) -> Tensor:
    """bool: the token before each target, of the prompt or of the response. No row starts with a
    target."""
    return torch.roll(target_mask_RT, -1, dims=1)
