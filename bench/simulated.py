"""Engines, scorers and learners with canned results of real sizes, for `bench.controller`.

Their work costs nothing and nothing of torch or vLLM is imported, so hundreds fit on one machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from actors.config import Decoding
from actors.prompt_group import GroupStatus, PromptGroup, RolloutEngine
from learners.data.samples import Samples, offsets_of
from learners.rl.scored_parts import unflatten_parts


class Engine(RolloutEngine):
    """Finishes every group at once, with responses of `length` tokens."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.groups: dict[int, PromptGroup] = {}

    def ready(self) -> None:
        """Returns once the actor has started."""

    def run_groups(
        self,
        new: Sequence[PromptGroup],
        decoding: Decoding,
        end_token: int,
        max_groups: int,
        min_version: int,
        seconds: float | None = None,
    ) -> tuple[GroupStatus, Samples | None]:
        for group in new:
            self.groups[group.index] = group
        finished = sorted(self.groups)[:max_groups]
        if not finished:
            return GroupStatus(), None
        samples = self._samples([self.groups.pop(index) for index in finished])
        return GroupStatus(finished), samples

    def update_weights(self, payload: Any, version: int, min_version: int = 0, arrays: Any = None) -> None:
        """Nothing is loaded, and no group is ever begun under old weights."""

    def cancel_groups(self) -> None:
        self.groups.clear()

    def _samples(self, groups: Sequence[PromptGroup]) -> Samples:
        num_seeds = [len(group.seeds) for group in groups]
        prompt_ids_B = np.repeat([group.prompt_id for group in groups], num_seeds)
        prompt_lengths_B = np.repeat([len(group.tokens) for group in groups], num_seeds)
        offsets = offsets_of(prompt_lengths_B + self.length)
        num_tokens = int(offsets[-1])
        return Samples(
            tokens_N=np.ones(num_tokens, np.int32),
            offsets=offsets,
            prompt_lengths_B=prompt_lengths_B.astype(np.int32),
            logprobs_N=np.full(num_tokens, -1.0, np.float32),
            versions_N=np.zeros(num_tokens, np.int32),
            prompt_ids_B=prompt_ids_B.astype(np.int64),
            ended_B=np.ones(len(prompt_ids_B), bool),
        )


class Scorer:
    """Scores and reference log-probabilities of the right shapes."""

    def ready(self) -> None:
        """Returns once the actor has started."""

    def score(
        self, samples: Samples, temperature: float, rows: dict[int, dict[str, Any]]
    ) -> tuple[SimpleNamespace, np.ndarray]:
        # A namespace with the fields of `actors.scoring.Scores`, whose module imports torch.
        raw_CB, applies_CB = np.zeros((1, samples.size), np.float32), np.ones((1, samples.size), bool)
        scores = SimpleNamespace(raw_CB=raw_CB, applies_CB=applies_CB, failures=[])
        return scores, np.zeros_like(samples.logprobs_N)


class Learner:
    """Reads a batch; returns its number of tokens."""

    def ready(self) -> None:
        """Returns once the actor has started."""

    def ppo_update(self, version: int, kl_coef: float, *flat_parts: Any) -> int:
        return sum(int(part.samples.offsets[-1]) for part in unflatten_parts(flat_parts))
