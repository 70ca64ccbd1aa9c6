"""How PPO cuts a batch of responses: epochs into minibatches (one optimizer step each),
minibatches into the micro-batches that one rank runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.random_streams import Stream, generator
from learners.data.batching import plan_responses
from learners.data.packing import PackedBatch
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


def minibatch_indices(
    seed: int, version: int, epoch: int, prompt_ids_B: np.ndarray, count: int
) -> list[np.ndarray]:
    """The responses of a batch, shuffled prompt by prompt and cut into `count` minibatches (fewer if
    there are fewer responses): the same on every rank. The responses to a prompt stay together, so
    that a forward pass can share the prompt."""
    prompts, prompt_of_B = np.unique(prompt_ids_B, return_inverse=True)
    # Drawn by each rank itself: equal arguments give equal orders, so nothing is communicated.
    place_of = generator(seed, Stream.PPO_MINIBATCHES, version, epoch).permutation(len(prompts))
    order = np.argsort(place_of[prompt_of_B], kind="stable")
    return np.array_split(order, min(count, len(order)))


def response_micro_batches(
    samples: Samples, indices: Sequence[int], context: TaskContext, span: float | None, shares_prompts: bool
) -> list[MicroBatch]:
    """This rank's micro-batches of the responses at `indices`."""
    budget = context.learner.micro_batch_tokens
    sequences = [samples.sequence(b) for b in indices]
    prompt_lengths_B = samples.prompt_lengths_B[list(indices)]
    # Every rank makes the plan of all ranks, so none has to wait for it.
    plan = plan_responses(sequences, prompt_lengths_B, context.ranks, budget, span, shares_prompts)
    micro_batches = []
    for micro in plan[context.rank]:
        targets = [samples.targets(indices[i]) for i in micro]
        shared = prompt_lengths_B[micro] if shares_prompts else None
        packed = context.pack([sequences[i] for i in micro], targets, span, shared)
        micro_batches.append(MicroBatch([indices[micro[i]] for i in packed.order], packed))
    return micro_batches
