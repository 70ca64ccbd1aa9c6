"""Kendall's τ_b between rankings with ties, averaged over items."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from label.statistics.estimate import Estimate
from label.statistics.pair_agreement import Ranking, pair_signs
from label.statistics.proportions import mean


def tau_b(first: Ranking, second: Ranking) -> float | None:
    """τ_b of two vectors of ranks (Kendall 1945); None where one of them ties everything.

    Of rank vectors, not of lists of ids in order of rank: those give another number, even with the
    opposite sign."""
    a, b = pair_signs(first), pair_signs(second)
    norm = math.sqrt(float((a**2).sum()) * float((b**2).sum()))
    if norm == 0:
        return None
    return float((a * b).sum()) / norm


@dataclass(frozen=True)
class RankCorrelation:
    mean: Estimate
    """Mean over items of the mean τ_b of the pairs of rankings of an item."""
    undefined: int
    """Pairs of rankings of which one ties everything."""


def mean_tau_b(rankings_by_item: Iterable[Sequence[Ranking]]) -> RankCorrelation:
    values: list[float] = []
    undefined = 0
    for rankings in rankings_by_item:
        of_item = []
        for first, second in combinations(rankings, 2):
            value = tau_b(first, second)
            if value is None:
                undefined += 1
            else:
                of_item.append(value)
        if of_item:
            values.append(float(np.mean(of_item)))
    return RankCorrelation(mean(values), undefined)
