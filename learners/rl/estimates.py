"""Estimates of what many samples of one prompt are worth: pass@k, and the best of N by a reward.
Pure functions."""

from __future__ import annotations

import math

import numpy as np


def pass_at_k(right: int, count: int, k: int) -> float:
    """Probability that at least one of k responses is right, given that `right` of `count` >= k
    were.

    1 - C(count - right, k) / C(count, k), unbiased (Chen et al. 2021, arXiv:2107.03374, Eq. 1).
    """
    return 1 - math.comb(count - right, k) / math.comb(count, k)


def best_of_n(rewards_PM: np.ndarray, values_PM: np.ndarray, n: int) -> float:
    """Mean value of the response with the highest reward among n of the M to each of P prompts,
    over all ways to choose n.

    The i-th lowest of M rewards (from 0) is the best of n with probability C(i, n - 1) / C(M, n)
    (Nakano et al. 2021, arXiv:2112.09332, appendix I). Prompts whose values are nan are left out.
    """
    count = rewards_PM.shape[1]
    chance_M = np.array([math.comb(i, n - 1) / math.comb(count, n) for i in range(count)])
    ordered_PM = np.take_along_axis(values_PM, rewards_PM.argsort(axis=1, kind="stable"), axis=1)
    return float(np.nanmean(ordered_PM @ chance_M))


def best_of_n_kl(n: int) -> float:
    """KL of best-of-n sampling to the policy sampled from, in nats: log n - (n - 1) / n (Stiennon
    et al. 2020, G.3)."""
    return math.log(n) - (n - 1) / n
