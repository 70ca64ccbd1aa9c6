"""Simulated labelers. They judge as the oracle does, except that each misjudges some responses and
has preferences of its own.

A misjudged response is an error about the truth. A preference only decides between responses that
are equally good, as people differ without either being wrong. Most of the disagreement between
labelers is of the second kind.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from cluster.quickstart.oracle import BEST_UTILITY, judge, utility
from common.random_streams import Stream, derived_seed


@dataclass(frozen=True)
class Labeler:
    name: str
    error_rate: float
    """Share of the responses that this labeler misjudges: takes to be worth anything from 0 to the
    best."""
    preference: float = 0.4
    """Standard deviation of the preference for one response or another, in units of utility."""
    tie: float = 0.15
    """Responses whose perceived utilities differ by less than this are ranked as equal."""

    def rank(
        self, row: dict[str, Any], responses: list[str], ended: list[bool], rng: random.Random
    ) -> list[int]:
        """Ranks from 1 (best), equal for ties. Within one ranking, equal texts are perceived as
        equally good."""
        perceived: dict[tuple[str, bool], float] = {}
        for response, is_complete in zip(responses, ended, strict=True):
            if (response, is_complete) in perceived:
                continue
            if rng.random() < self.error_rate:
                judged = rng.uniform(0, BEST_UTILITY)
            else:
                judged = utility(judge(row, response, is_complete))
            perceived[response, is_complete] = judged + rng.gauss(0, self.preference)
        ranks: dict[float, int] = {}
        rank, best_of_rank = 0, float("inf")
        for value in sorted(perceived.values(), reverse=True):
            # Compared with the best of its rank: a chain of near ties must not join all responses.
            if value < best_of_rank - self.tie:
                rank, best_of_rank = rank + 1, value
            ranks[value] = rank
        return [ranks[perceived[key]] for key in zip(responses, ended, strict=True)]


def make_labelers(count: int, seed: int, error_rate: float) -> list[Labeler]:
    """`count` labelers of a run with this seed, whose error rates differ from the mean by up to a
    quarter."""
    rng = random.Random(derived_seed(seed, Stream.LABELERS))
    labelers = []
    for i in range(count):
        labelers.append(Labeler(f"labeler-{i + 1}", error_rate * rng.uniform(0.75, 1.25)))
    return labelers
