"""Estimates from many samples of one prompt: pass@k, and the best of n by a reward. Pure functions."""

from __future__ import annotations

import math

import numpy as np


def pass_at_k(passed: int, count: int, k: int) -> float:
    """Probability that at least one of k responses passes, given that `passed` of `count` >= k did.

    1 - C(count - passed, k) / C(count, k), unbiased (Chen et al. 2021, arXiv:2107.03374, Eq. 1).
    """
    return 1 - math.comb(count - passed, k) / math.comb(count, k)


def best_of_n(rewards_PJ: np.ndarray, values_PJ: np.ndarray, n: int) -> float:
    """Mean value of the response with the highest reward among n of the J to each of P prompts,
    over all ways to choose n.

    The i-th lowest of J rewards (from 0) is the best of n with probability C(i, n - 1) / C(J, n)
    (Nakano et al. 2021, arXiv:2112.09332, appendix I). Prompts whose values are nan are left out.
    """
    count = rewards_PJ.shape[1]
    chance_J = np.array([math.comb(i, n - 1) / math.comb(count, n) for i in range(count)])
    ordered_PJ = np.take_along_axis(values_PJ, rewards_PJ.argsort(axis=1, kind="stable"), axis=1)
    return float(np.nanmean(ordered_PJ @ chance_J))


def best_of_n_kl(n: int) -> float:
    """KL of best-of-n sampling to the policy sampled from, in nats: log n - (n - 1) / n (Stiennon
    et al. 2020, G.3)."""
    return math.log(n) - (n - 1) / n
