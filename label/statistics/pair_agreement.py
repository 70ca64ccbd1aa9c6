"""How often two rankings of the same responses order a pair of them alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np

from label.statistics.estimate import Estimate, Floats, Ints
from label.statistics.proportions import ratio_by_item

Ranking = Sequence[int]
"""Ranks of K responses: 1 is best, equal for ties."""


@dataclass(frozen=True)
class PairCounts:
    """Pairs of responses that two rankings order."""

    agreeing: int
    """Strictly ordered by both, and alike."""
    comparable: int
    """Strictly ordered by both."""
    equal: int
    """As `agreeing`, plus the pairs that both tie."""
    pairs: int
    """All pairs: K(K−1)/2."""


@cache
def pair_indices(count: int) -> tuple[Ints, Ints]:
    """First and second of all pairs of `count` responses."""
    first, second = np.triu_indices(count, 1)
    return first, second


def pair_signs(ranks: Ranking) -> Floats:
    """(K(K−1)/2,): 1 where the first response of a pair is better, −1 where the second is, 0 for a
    tie."""
    ranks_K = np.asarray(ranks, float)
    first, second = pair_indices(len(ranks_K))
    return np.sign(ranks_K[second] - ranks_K[first])


def compare(first: Ranking, second: Ranking) -> PairCounts:
    """Raises ValueError if the rankings are not of equally many responses."""
    if len(first) != len(second):
        raise ValueError(f"rankings of {len(first)} and of {len(second)} responses cannot be compared")
    a, b = pair_signs(first), pair_signs(second)
    both = (a != 0) & (b != 0)
    return PairCounts(int((both & (a == b)).sum()), int(both.sum()), int((a == b).sum()), len(a))


@dataclass(frozen=True)
class Agreement:
    """Shares of agreeing pairs, with items as the independent observations."""

    without_ties: Estimate
    """Of the pairs that both order strictly, as InstructGPT counts."""
    with_ties: Estimate
    """Of all pairs, with a tie as a third answer."""


def agreement(rankings_by_item: Iterable[Sequence[Ranking]]) -> Agreement:
    """Over all pairs of rankings of each item."""
    pairs_by_item = []
    for rankings in rankings_by_item:
        pairs_by_item.append(list(combinations(rankings, 2)))
    return agreement_of_pairs(pairs_by_item)


def agreement_with(pairs: Iterable[tuple[Ranking, Ranking]]) -> Agreement:
    """Of one ranking of each item with another: a labeler against gold, or against himself
    earlier."""
    return agreement_of_pairs([[pair] for pair in pairs])


def agreement_of_pairs(pairs_by_item: Sequence[Sequence[tuple[Ranking, Ranking]]]) -> Agreement:
    """Of chosen pairs of rankings of each item: one person's with everybody else's, for example."""
    sums = np.zeros((len(pairs_by_item), 4))
    for i, pairs in enumerate(pairs_by_item):
        for first, second in pairs:
            counts = compare(first, second)
            sums[i] += (counts.agreeing, counts.comparable, counts.equal, counts.pairs)
    agreeing, comparable, equal, total = sums.T
    return Agreement(
        ratio_by_item(agreeing.tolist(), comparable.tolist()), ratio_by_item(equal.tolist(), total.tolist())
    )
