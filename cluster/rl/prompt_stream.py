"""Which prompt each group of a PPO run answers, and with which seeds.

    epoch   0 (a permutation of all prompts)    1 (another permutation)     ...
    index   0, 1, ..., len(rows) - 1            len(rows), ...              ...

The stream depends on the seed of the run alone. It knows neither batches nor progress, so a run
that starts again from a checkpoint, drops groups or changes its batch size asks for the same
groups under the same indices. Used by `cluster.rl.rollout_scheduler` and `bench/iteration.py`;
needs no Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from actors.prompt_group import PromptGroup
from common.random_streams import Stream, derived_seed, generator
from learners.rl.config import PPOConfig


class PromptStream:
    """`stream[index]` is the group at this index of an endless sequence. Every epoch has each
    prompt exactly once."""

    def __init__(
        self,
        rows: Sequence[dict[str, Any]],
        tokens: Sequence[list[int]],
        config: PPOConfig,
        seed: int,
        has_environment: bool = False,
    ) -> None:
        """`rows` and `tokens` have one entry for each prompt; a group gets `config.responses`
        seeds, and for an environment its row."""
        self.rows = rows
        self._tokens = tokens
        self._responses = config.responses
        self._seed = seed
        self._has_environment = has_environment
        # All epochs are kept: together they are no larger than the indices that were asked for.
        self._orders: dict[int, np.ndarray] = {}

    def __getitem__(self, index: int) -> PromptGroup:
        epoch, position = divmod(index, len(self.rows))
        prompt_id = int(self._order(epoch)[position])
        # A seed belongs to the response, so that the same text is drawn whichever engine draws it.
        rng = generator(self._seed, Stream.SAMPLE_SEEDS, index)
        seeds = rng.integers(0, 2**31, size=self._responses).tolist()
        tokens = self._tokens[prompt_id]
        if not self._has_environment:
            return PromptGroup(index, prompt_id, tokens, seeds)
        environment_seed = derived_seed(self._seed, Stream.ENVIRONMENT_SEEDS, index)
        return PromptGroup(index, prompt_id, tokens, seeds, self.rows[prompt_id], environment_seed)

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            rng = generator(self._seed, Stream.PROMPT_ORDER, epoch)
            self._orders[epoch] = rng.permutation(len(self.rows))
        return self._orders[epoch]
