"""Every random draw of a run comes from a named stream of its seed, so that no two uses share their
numbers.

    generator(seed, Stream.PROMPT_ORDER, epoch).permutation(count)

The stream and its counters are the spawn key of a numpy `SeedSequence`, which keeps streams apart
for any seed and any number of counters. (A plain list as entropy does not: numpy pads it with
zeros, so [seed, 1] and [seed, 1, 0] are one.)
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a draw is for. Numbers are part of every result: add at the end, never renumber."""

    SUPERVISED_ORDER = 1
    """counters: epoch"""
    PROMPT_ORDER = 2
    """counters: epoch over the prompts of PPO"""
    SAMPLE_SEEDS = 3
    """counters: index of the group; one seed for each response"""
    PPO_MINIBATCHES = 4
    """counters: iteration, epoch"""
    PTX_SEQUENCES = 5
    """counters: iteration, optimizer step"""
    SOURCE_MIX = 6
    """counters: index of the source"""
    EVALUATION_PROMPTS = 7
    COLLECT_PROMPTS = 8
    COLLECT_SEEDS = 9
    """counters: index of the prompt"""
    LABELERS = 10
    """the properties of the simulated labelers"""
    LABELER_ASSIGNMENT = 11
    LABELER_ERRORS = 12
    POLICY_INIT = 13
    SCALAR_HEAD_INIT = 14
    LORA_INIT = 15
    """counters: 0 for the policy, 1 for a scalar model"""
    EVALUATION_SEEDS = 16
    """counters: index of the held-out prompt; one seed for each response"""
    ENGINES = 18
    """counters: index of the rollout actor; for requests without a seed of their own"""


def generator(seed: int, stream: Stream, *counters: int) -> np.random.Generator:
    """The stream's generator; equal arguments give equal numbers."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(int(stream), *counters)))


def derived_seed(seed: int, stream: Stream, *counters: int) -> int:
    """A seed in [0, 2**31) of a stream, for generators other than numpy's (torch, random, vLLM)."""
    return int(generator(seed, stream, *counters).integers(0, 2**31))
