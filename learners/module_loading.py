"""The modules that tasks train, with a learner's adapters, recomputation and way of loading."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from learners.config import LearnerConfig, ModelConfig
from learners.models import (
    PolicyModule,
    ScalarModule,
    build_policy,
    load_policy,
    load_scalar,
    scalar_from_policy,
    with_adapters,
    with_checkpointing,
)
from learners.sharded_loading import load


@dataclass(frozen=True)
class ModuleLoader:
    learner: LearnerConfig
    model: ModelConfig

    def policy(self, path: str | Path, dtype: str, seed: int) -> PolicyModule:
        def make() -> PreTrainedModel:
            model = load_policy(path, dtype, self.model.attention)
            return with_adapters(model, self.model, seed)

        return PolicyModule(self._load(make, dtype))

    def scalar(self, path: str | Path | None, policy: Path, dtype: str, seed: int) -> ScalarModule:
        """The scalar model of a folder; without one, the policy with a new head."""

        def make() -> PreTrainedModel:
            if path:
                model = load_scalar(path, dtype, self.model.attention)
            else:
                model = scalar_from_policy(policy, seed, dtype, self.model.attention)
            return with_adapters(model, self.model, seed)

        return ScalarModule(self._load(make, dtype))

    def new_policy(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> PolicyModule:
        """A policy with random weights, without adapters: beside weights that stay random they could
        learn nothing."""
        return PolicyModule(self._load(lambda: build_policy(self.model, tokenizer, seed), self.learner.dtype))

    def _load(self, make: Callable[[], PreTrainedModel], dtype: str) -> PreTrainedModel:
        """The model of `make`, which each rank calls or rank 0 alone (`learners.sharded_loading`)."""
        return with_checkpointing(load(make, self.learner, dtype), self.model)
