"""When figures of quality warn, pause or admit."""

from __future__ import annotations

from pydantic import Field

from common.config import Section


class PauseConfig(Section):
    """A pause is for bad faith, not for bad days: every rule is far from what an honest person
    does."""

    enabled: bool = True
    """Whether the monitor pauses by itself; otherwise it only tells the owner."""
    every: int = Field(10, ge=1)
    """Labels of a person between two looks at the figures."""
    gold_accuracy: float = Field(0.65, gt=0.5, lt=1)
    """Pause when even the upper bound of the accuracy on gold items is below."""
    gold_items: int = Field(10, ge=5)
    """Gold items before that can happen."""
    doubt_items: int = Field(4, ge=1)
    """Gold items after which an accuracy below the threshold is a doubt, which brings more gold."""
    doubt_factor: float = Field(4.0, ge=1)
    """How many times more gold items a person gets while in doubt."""
    position_p: float = Field(1e-4, gt=0, lt=0.05)
    """Pause when the place at which responses were shown decides about their ranks, with a p
    below."""
    straight_share: float = Field(0.95, gt=0.5, le=1)
    """Pause when this share of the answers is one and the same by shown place."""
    fast_share: float = Field(0.2, gt=0, le=1)
    """Pause when more than this share of the items was answered faster than anybody reads."""
    words_per_minute: float = Field(900, gt=0)
    """What nobody reads faster than."""
    items: int = Field(20, ge=10)
    """Items before position, straight-lining or speed can pause."""
    window: int = Field(400, ge=20)
    """Latest items that count: old carelessness is no reason any more, nor is old care an
    excuse."""


class ScreeningThresholds(Section):
    """InstructGPT's soft cut-offs (arXiv:2203.02155, appendix B.1)."""

    flag_agreement: float = Field(0.75, ge=0, le=1)
    """Agreement with gold on what is sensitive."""
    flag_recall: float = Field(0.70, ge=0, le=1)
    """Share of the sensitive texts that are flagged."""
    flag_items: int = Field(30, ge=1)
    """Texts to flag."""
    ranking_agreement: float = Field(0.75, ge=0, le=1)
    """Agreement with gold on pairs of ranked responses."""
    ranking_items: int = Field(20, ge=1)
    """Prompts to rank."""
    demonstration_score: float = Field(6.0, ge=1, le=7)
    """Mean rating of the demonstrations, from 1 to 7."""
    demonstrations: int = Field(3, ge=1)
    """Demonstrations to write."""
    raters: int = Field(2, ge=1)
    """Reviewers who rate each demonstration, blind to its author."""
    reading_score: float = Field(0.8, ge=0, le=1)
    """Share of right answers to the questions about the guidelines."""
