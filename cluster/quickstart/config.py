"""How much data the quickstart's generator makes, and how imperfect the people in it are."""

from __future__ import annotations

from pydantic import Field

from common.config import Section


class QuickstartConfig(Section):
    seed: int = 0
    """Seed of the generated data, apart from the seed of the run."""
    documents: int = Field(80000, ge=10)
    """Documents of the pretraining corpus."""
    demonstrations: int = Field(16000, ge=4)
    """Demonstrations for SFT."""
    prompts: int = Field(6000, ge=2)
    """Prompts to sample from, in collect and PPO."""
    heldout: int = Field(400, ge=1)
    """Held-out prompts, in phrasings that appear nowhere else."""
    misconceived: float = Field(0.42, ge=0, le=1)
    """Share of the facts of which a misconception is stated more often than the truth."""
    truth_when_misconceived: float = Field(0.28, ge=0, le=1)
    """How often such a fact is stated right."""
    truth: float = Field(0.7, ge=0, le=1)
    """How often any other fact is stated right, and any other question answered right."""
    rude: float = Field(0.27, ge=0, le=1)
    """Share of rude answers."""
    rude_when_provoked: float = Field(0.6, ge=0, le=1)
    """Share of rude answers to a provocation."""
    rambling: float = Field(0.1, ge=0, le=1)
    """Share of answers that ramble on."""
