"""Every random draw of a run comes from a named stream of its seed, so that no two uses share their
numbers.

    generator(seed, Stream.PROMPT_ORDER, epoch).permutation(count)

The stream and its counters are the spawn key of a numpy `SeedSequence`, which keeps streams apart
for any seed and any number of counters. (A plain list as entropy does not: numpy pads it with
zeros, so [seed, 1] and [seed, 1, 0] are one.)
"""

from __future__ import annotations

from collections.abc import Sequence
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
    BEST_OF_N_PROMPTS = 19
    BEST_OF_N_SEEDS = 20
    """counters: index of the prompt; one seed for each response"""
    IMPORT_ROWS = 21
    """of the embedding of an imported model that gets a token"""
    ENVIRONMENT_SEEDS = 22
    """counters: index of the group; one seed for the environments of all its episodes"""
    EVALUATION_ENVIRONMENTS = 23
    """counters: index of the held-out prompt"""
    TURN_SEEDS = 24
    """of the seed of an episode, counters: turn; the first turn has the seed itself"""
    RECIPE_DATA = 25
    """what the generators of data in `cluster.recipes` write"""
    EPISODE_EVENTS = 26
    """of the seed that an environment is reset with: what it draws in an episode"""
    ROUND_SEEDS = 27
    """counters: index of the policy, index of the prompt; one seed for each response"""
    ROUND_LABELERS = 28
    """counters: round, index of the simulated person, labels that he or she has given"""


def generator(seed: int, stream: Stream, *counters: int) -> np.random.Generator:
    """The stream's generator; equal arguments give equal numbers."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(int(stream), *counters)))


def derived_seed(seed: int, stream: Stream, *counters: int) -> int:
    """A seed in [0, 2**31) of a stream, for generators other than numpy's (torch, random, vLLM)."""
    return int(generator(seed, stream, *counters).integers(0, 2**31))


def response_seeds(
    seed: int, stream: Stream, counters: Sequence[int], prompt_ids: Sequence[int], responses: int
) -> list[int]:
    """One for each response, prompt by prompt. They belong to the prompt (and to the counters), so that an
    interrupted stage continues with the numbers that it would have had."""
    seeds: list[int] = []
    for prompt_id in prompt_ids:
        rng = generator(seed, stream, *counters, prompt_id)
        seeds += rng.integers(0, 2**31, size=responses).tolist()
    return seeds
