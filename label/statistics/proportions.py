"""Shares with intervals, and how many comparisons a comparison of two policies needs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtri

from label.statistics.estimate import Estimate, Z, undefined


def wilson(successes: float, n: int) -> Estimate:
    """Share of yes among n independent answers, with the score interval (Wilson 1927). Half a success
    is allowed: a tie."""
    if n == 0:
        return undefined("no observations")
    return Estimate(successes / n, *_wilson_interval(successes, n), n)


def _wilson_interval(successes: float, n: int) -> tuple[float, float]:
    center = (successes + Z**2 / 2) / (n + Z**2)
    margin = Z / (n + Z**2) * math.sqrt(successes * (n - successes) / n + Z**2 / 4)
    # Rounding may miss the ends by a hair, where the interval is exact.
    return max(0.0, center - margin), min(1.0, center + margin)


def ratio_by_item(counted_I: Sequence[float], total_I: Sequence[float]) -> Estimate:
    """Sum of `counted` over sum of `total`, where items are independent and what is inside one is
    not.

    The variance is that of a ratio of sums (Cochran 1977, Sampling Techniques, eq. 2.46), and the
    interval is cut at 0 and 1. `n` counts the items with a total above 0; a single one gives no
    interval."""
    counted, total = np.asarray(counted_I, float), np.asarray(total_I, float)
    used = total > 0
    n = int(used.sum())
    if n == 0:
        return undefined("nothing to compare")
    rate = float(counted[used].sum() / total[used].sum())
    if n == 1:
        return Estimate(rate, n=1)
    residuals = counted[used] - rate * total[used]
    margin = Z * math.sqrt(float((residuals**2).sum())) / float(total[used].sum())
    return Estimate(rate, max(0.0, rate - margin), min(1.0, rate + margin), n)


def mean(values: Sequence[float]) -> Estimate:
    """Mean of independent values with the normal interval from their sample variance."""
    array = np.asarray(values, float)
    if not len(array):
        return undefined("no observations")
    center = float(array.mean())
    if len(array) == 1:
        return Estimate(center, n=1)
    margin = Z * float(array.std(ddof=1)) / math.sqrt(len(array))
    return Estimate(center, center - margin, center + margin, len(array))


def difference(after: tuple[int, int], before: tuple[int, int]) -> Estimate:
    """Share after minus share before, each as (successes, n): drift of a person between two
    periods, or of everybody on one fixed pair of policies. The interval is Newcombe's (1998, method
    10), made of the two Wilson intervals, so it holds for small n and for shares near 0 and 1."""
    if after[1] == 0 or before[1] == 0:
        return undefined("no observations in one of the two periods")
    first, second = after[0] / after[1], before[0] / before[1]
    first_low, first_high = _wilson_interval(*after)
    second_low, second_high = _wilson_interval(*before)
    change = first - second
    below = math.hypot(first - first_low, second_high - second)
    above = math.hypot(first_high - first, second - second_low)
    return Estimate(change, change - below, change + above, after[1] + before[1])


def difference_p(after: tuple[int, int], before: tuple[int, int]) -> float:
    """Two-sided p of Fisher's exact test that both periods have the same share."""
    from scipy.stats import fisher_exact  # seconds, which the start of the workplace need not wait for

    table = [[after[0], after[1] - after[0]], [before[0], before[1] - before[0]]]
    return float(fisher_exact(table).pvalue)


def binomial_p(successes: int, n: int, share: float = 0.5) -> float:
    """Two-sided p of the exact binomial test; 1 without observations."""
    if n == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(successes, n, share).pvalue)


def comparisons_needed(win_rate: float, power: float = 0.8, level: float = 0.05) -> int:
    """Comparisons, one prompt and one vote each, with which a policy that wins at `win_rate` is
    told from an equal one (0.5) by a two-sided test at `level` with probability `power`: (z₁·½ +
    z₂·√(p(1−p)))² / (p − ½)²."""
    if not 0 < win_rate < 1 or win_rate == 0.5:
        raise ValueError(f"win_rate: {win_rate}; expected a share between 0 and 1, and not 0.5")
    spread = math.sqrt(win_rate * (1 - win_rate))
    root = ndtri(1 - level / 2) * 0.5 + ndtri(power) * spread
    return math.ceil(root**2 / (win_rate - 0.5) ** 2)
