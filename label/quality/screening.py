"""The questionnaire: four criteria as scores with intervals, and the decision that they suggest.

The criteria are InstructGPT's (arXiv:2203.02155, appendix B.1): flagging of sensitive speech,
ranking, writing of sensitive demonstrations, and self-assessment of topics, which has no threshold
and serves the coverage of the team."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from label.quality.config import ScreeningThresholds
from label.quality.gold import gold_accuracy
from label.statistics.estimate import Estimate, undefined
from label.statistics.pair_agreement import Ranking
from label.statistics.proportions import mean, wilson

Proposal = Literal["admit", "reject", "second look"]


@dataclass(frozen=True)
class Score:
    """One criterion of one person."""

    criterion: str
    estimate: Estimate
    threshold: float
    needed: int
    """Observations without which the score does not count."""

    @property
    def complete(self) -> bool:
        return self.estimate.value is not None and self.estimate.n >= self.needed

    @property
    def passed(self) -> bool:
        value = self.estimate.value
        return self.complete and value is not None and value >= self.threshold

    @property
    def failed(self) -> bool:
        """Whether even the upper bound misses the threshold."""
        high = self.estimate.high
        return self.complete and high is not None and high < self.threshold

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed, "failed": self.failed}


@dataclass(frozen=True)
class Screening:
    scores: tuple[Score, ...]
    self_assessment: dict[str, int]
    """Topic -> how sure the person is of it, as answered."""

    @property
    def proposal(self) -> Proposal:
        """Admit who reaches every threshold, reject who misses one by more than chance, and have an
        owner look again at the rest. The owner decides in each case."""
        if all(score.passed for score in self.scores):
            return "admit"
        if any(score.failed for score in self.scores):
            return "reject"
        return "second look"

    @property
    def reasons(self) -> list[str]:
        """One sentence for each criterion that was not passed."""
        reasons = []
        for score in self.scores:
            if score.passed:
                continue
            if not score.complete:
                reasons.append(f"{score.criterion}: {score.estimate.n} of {score.needed} answers")
                continue
            reasons.append(f"{score.criterion}: {score.estimate} misses {score.threshold:g}")
        return reasons

    def to_json(self) -> dict[str, Any]:
        scores = [score.to_json() for score in self.scores]
        proposal = {"proposal": self.proposal, "reasons": self.reasons}
        return {"scores": scores, "self_assessment": self.self_assessment, **proposal}


def screen(
    flags: Iterable[tuple[bool, bool]],
    rankings: Sequence[tuple[Ranking, Ranking]],
    demonstration_ratings: Iterable[Sequence[int]],
    reading: Sequence[bool],
    self_assessment: Mapping[str, int] | None = None,
    thresholds: ScreeningThresholds | None = None,
) -> Screening:
    """`flags` are (said, gold) of whether a text is sensitive, `rankings` (ranks, gold ranks),
    `demonstration_ratings` the ratings of each demonstration by its reviewers, `reading` whether
    each question about the guidelines was answered right (none where there are no questions)."""
    limits = thresholds or ScreeningThresholds()
    counts = Counter(flags)
    right, total = counts[True, True] + counts[False, False], sum(counts.values())
    sensitive = counts[True, True] + counts[False, True]
    scores = [
        Score("flags", wilson(right, total), limits.flag_agreement, limits.flag_items),
        Score("sensitive flags", wilson(counts[True, True], sensitive), limits.flag_recall, 1),
        Score("rankings", gold_accuracy(rankings), limits.ranking_agreement, limits.ranking_items),
        _demonstrations(demonstration_ratings, limits),
    ]
    if reading:
        estimate = wilson(sum(reading), len(reading))
        scores.append(Score("guidelines", estimate, limits.reading_score, len(reading)))
    return Screening(tuple(scores), dict(self_assessment or {}))


def _demonstrations(ratings: Iterable[Sequence[int]], limits: ScreeningThresholds) -> Score:
    means = [float(np.mean(one)) for one in ratings if len(one) >= limits.raters]
    estimate = mean(means)
    if not means:
        estimate = undefined(f"no demonstration rated by {limits.raters} reviewers")
    return Score("demonstrations", estimate, limits.demonstration_score, limits.demonstrations)
