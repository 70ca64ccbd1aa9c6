"""Whether the place at which a response was shown decides about its rank.

The places are drawn at random for every person, so under the hypothesis that only quality counts
every order of the ranks over the places is equally likely. That gives the mean and the variance of
the test exactly, whatever the responses are worth."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from label.statistics.estimate import Estimate
from label.statistics.pair_agreement import Ranking, pair_indices
from label.statistics.proportions import ratio_by_item


@dataclass(frozen=True)
class PositionBias:
    first_better: Estimate
    """Of the pairs that are ordered strictly, how often the response shown earlier is the better
    one; ½ without bias."""
    slope: float
    """Places in rank that one place in the shown order costs; 0 without bias, negative where later
    responses are preferred."""
    p: float
    """Two-sided, from the permutation distribution's mean and variance and the normal limit."""


def position_bias(shown_ranks: Iterable[Ranking]) -> PositionBias:
    """Of the ranks that one person gave, in the order in which the responses were shown to him."""
    earlier, strict = [], []
    covariance = variance = spread = 0.0
    for ranks in shown_ranks:
        ranks_K = np.asarray(ranks, float)
        count = len(ranks_K)
        place_K = np.arange(count) - (count - 1) / 2
        centered = ranks_K - ranks_K.mean()
        covariance += float(place_K @ centered)
        spread += float(place_K @ place_K)
        # Of Σ place·rank over random permutations.
        variance += float(place_K @ place_K) * float(centered @ centered) / (count - 1)
        first, second = pair_indices(count)
        earlier.append(float((ranks_K[first] < ranks_K[second]).sum()))
        strict.append(float((ranks_K[first] != ranks_K[second]).sum()))
    p = 1.0
    if variance > 0:
        p = float(2 * ndtr(-abs(covariance) / math.sqrt(variance)))
    slope = 0.0
    if spread > 0:
        slope = covariance / spread
    return PositionBias(ratio_by_item(earlier, strict), slope, p)


def longer_better(rankings: Iterable[tuple[Ranking, Ranking]]) -> Estimate:
    """Of pairs that (ranks, lengths) order strictly by both, how often the longer response is
    preferred.

    Unlike place, length is not drawn at random: good responses may well be longer. Compare persons
    with each other, or with gold, and not with ½."""
    agreeing, strict = [], []
    for ranks, lengths in rankings:
        first, second = pair_indices(len(ranks))
        ranks_K, lengths_K = np.asarray(ranks), np.asarray(lengths)
        by_rank = np.sign(ranks_K[second] - ranks_K[first])
        by_length = np.sign(lengths_K[first] - lengths_K[second])
        both = (by_rank != 0) & (by_length != 0)
        agreeing.append(float((both & (by_rank == by_length)).sum()))
        strict.append(float(both.sum()))
    return ratio_by_item(agreeing, strict)
