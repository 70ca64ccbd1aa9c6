"""How often a reward model orders two responses as their labelers did: counts by prompt, and
rates with an interval.

Made by `RewardModelTask.pair_agreement` on the held-out prompts; the reward stage joins the
counts of all folds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from learners.supervised.losses import ranking_pairs


@dataclass(frozen=True)
class PairCounts:
    """Counts of non-tied pairs for each of G prompts, float64."""

    agreeing_G: np.ndarray
    """Pairs that a score orders as the ranking does."""
    total_G: np.ndarray
    """All pairs."""

    def add(self, prompt: int, scores: Sequence[float], ranks: Sequence[int]) -> None:
        """Counts the pairs of one ranking of a prompt."""
        agreeing, total = count_agreeing(scores, ranks)
        self.agreeing_G[prompt] += agreeing
        self.total_G[prompt] += total

    def rate(self) -> float:
        return float(self.agreeing_G.sum() / max(1.0, self.total_G.sum()))

    def interval(self) -> tuple[float, float]:
        """The 95% interval of the rate. The pairs of one prompt are not independent, so the
        variance is that of a ratio of sums over prompts (Cochran 1977, Sampling Techniques, eq.
        2.46)."""
        rate, total = self.rate(), max(1.0, float(self.total_G.sum()))
        margin = 1.96 * float(np.linalg.norm(self.agreeing_G - rate * self.total_G)) / total
        return rate - margin, rate + margin

    def difference(self, other: PairCounts) -> tuple[float, float, float]:
        """How much higher the rate is than that of another score on the same pairs, and its 95%
        interval: (difference, low, high). Paired by prompt, which is what makes it narrower than the
        two intervals."""
        paired = PairCounts(self.agreeing_G - other.agreeing_G, self.total_G)
        return paired.rate(), *paired.interval()


@dataclass(frozen=True)
class PairAgreement:
    """Three ways to order the responses to G prompts, against rankings of them."""

    labelers: PairCounts
    """The reward model's scores against the labelers' rankings."""
    length: PairCounts
    """Length (longer is better) against the labelers' rankings: what a reward model must beat."""
    oracle: PairCounts
    """The reward model's scores against the oracle's ranks; no pairs where the oracle gave none."""

    @staticmethod
    def from_array(counts: np.ndarray) -> PairAgreement:
        """From an array (6, G); see `to_array`."""
        labelers, length, oracle = counts.reshape(3, 2, -1)
        return PairAgreement(PairCounts(*labelers), PairCounts(*length), PairCounts(*oracle))

    def to_array(self) -> np.ndarray:
        """(6, G): agreeing and total pairs of labelers, length and oracle, for files and sums
        over ranks."""
        rows = []
        for counts in (self.labelers, self.length, self.oracle):
            rows += [counts.agreeing_G, counts.total_G]
        return np.array(rows, dtype=np.float64)

    @staticmethod
    def concat(parts: Iterable[PairAgreement]) -> PairAgreement:
        """The prompts of all parts, for example of all folds."""
        return PairAgreement.from_array(np.concatenate([part.to_array() for part in parts], axis=1))

    def rates(self) -> dict[str, float]:
        low, high = self.labelers.interval()
        over_length, over_length_low, over_length_high = self.labelers.difference(self.length)
        rates = {
            "accuracy/labelers": self.labelers.rate(),
            "accuracy/low": low,
            "accuracy/high": high,
            "pairs": float(self.labelers.total_G.sum()),
            "accuracy/length_only": self.length.rate(),
            "accuracy/over_length": over_length,
            "accuracy/over_length_low": over_length_low,
            "accuracy/over_length_high": over_length_high,
        }
        oracle_pairs = float(self.oracle.total_G.sum())
        if oracle_pairs:
            rates |= {"accuracy/truth": self.oracle.rate(), "truth_pairs": oracle_pairs}
        return rates


def described(rates: Mapping[str, float], prefix: str = "") -> str:
    """The rates of `PairAgreement.rates` in words; `prefix` is what stands before their names."""
    low, high = rates[f"{prefix}accuracy/low"], rates[f"{prefix}accuracy/high"]
    return (
        f"{rates[f'{prefix}accuracy/labelers']:.1%} of {rates[f'{prefix}pairs']:.0f} held-out pairs as the "
        f"labelers (95% interval {low:.1%} to {high:.1%}); longer is better: "
        f"{rates[f'{prefix}accuracy/length_only']:.1%}, difference "
        f"{100 * rates[f'{prefix}accuracy/over_length']:+.1f} points "
        f"({100 * rates[f'{prefix}accuracy/over_length_low']:+.1f} to "
        f"{100 * rates[f'{prefix}accuracy/over_length_high']:+.1f})"
    )


def count_agreeing(scores: Sequence[float], ranks: Sequence[int]) -> tuple[float, int]:
    """(pairs ordered alike, pairs) over the non-tied pairs of one ranking; equal scores count as
    half ordered alike, as chance would."""
    pairs = ranking_pairs(ranks)
    # Neither right nor wrong: what gives every response the same score is then no better and no
    # worse than a coin.
    agreeing = 0.0
    for better, worse in pairs:
        agreeing += (scores[better] > scores[worse]) + (scores[better] == scores[worse]) / 2
    return agreeing, len(pairs)
