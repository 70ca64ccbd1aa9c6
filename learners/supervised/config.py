"""The sections of the run configuration for the supervised stages that learn from preferences without
reinforcement learning: DPO, and fine-tuning on the best of n responses."""

from __future__ import annotations

from pydantic import Field

from common.config import Section
from learners.config import OptimizerConfig, SFTConfig


class DPOConfig(Section):
    beta: float = Field(0.1, gt=0)
    """Strength of the penalty for leaving the reference policy (Rafailov et al. 2023, Eq. 7): a response's
    implicit reward is beta x log(policy / reference)."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of the preferences that are taken to be the wrong way round (conservative DPO). 0: none."""
    epochs: int = Field(1, ge=1)
    """Passes over the rankings."""
    batch_size: int = Field(16, ge=1)
    """Prompts (each with all its pairs) in one optimizer step over all ranks."""
    validation_share: float = Field(0.1, gt=0, lt=0.5)
    """Share of the prompts held out for loss and pair accuracy."""
    optimizer: OptimizerConfig = OptimizerConfig(lr=1e-4)
    """AdamW settings."""
    checkpoint_every: int = Field(100, ge=1)
    """Steps between checkpoints of the learner state."""


class BestOfNConfig(SFTConfig):
    """Responses to sample, and how to learn from the best of them."""

    prompts: int = Field(2000, ge=1)
    """Prompts to sample responses to (at most as many as there are)."""
    responses: int = Field(8, ge=2)
    """Responses per prompt (n), of which the one with the highest reward is learned from."""
    max_response_tokens: int = Field(32, ge=1)
    """Longest response, the end token included."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature."""
    epochs: int = Field(1, ge=1)
    """Passes over the chosen responses."""
