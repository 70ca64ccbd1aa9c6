"""Strengths from rankings of more than two: each place is drawn from what is left,
∏ π_best/(Σ π of the rest) (Luce 1959, Plackett 1975)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np

from label.statistics.bradley_terry import PRIOR
from label.statistics.estimate import Floats
from label.statistics.newton import maximize

Stage = tuple[Sequence[str], Sequence[str], float]
"""What is drawn, with equal chance for each; from what; and the weight."""


def plackett_luce(rankings: Sequence[Mapping[str, int]], prior: float = PRIOR) -> dict[str, float]:
    """Log-strengths that sum to 0. A ranking maps names to ranks, 1 is best, equal for ties; it
    need not rank all. `prior` is the weight of a tie of each pair, as in Bradley-Terry, whose
    strengths these are if every ranking has two names. Raises ArithmeticError with `prior=0` if a
    strength is infinite."""
    names = sorted({name for ranking in rankings for name in ranking})
    stages = list(_stages(rankings))
    stages += [(pair, pair, prior) for pair in combinations(names, 2)]
    if not stages:
        return dict.fromkeys(names, 0.0)
    number = {name: a for a, name in enumerate(names)}
    drawn_SA, rest_SA = np.zeros((len(stages), len(names))), np.zeros((len(stages), len(names)))
    for stage, (drawn, rest, weight) in enumerate(stages):
        drawn_SA[stage, [number[name] for name in drawn]] = weight / len(drawn)
        rest_SA[stage, [number[name] for name in rest]] = 1
    theta = _strengths(drawn_SA, rest_SA)
    return dict(zip(names, theta.tolist(), strict=True))


def _stages(rankings: Sequence[Mapping[str, int]]) -> Iterator[Stage]:
    """A tie counts as all orders of the tied in equal shares, as it is half a win of each in
    Bradley-Terry. On the way through these orders each subset of size m is what is left of the tied
    once, with chance 1/C(g, m)."""
    for ranking in rankings:
        for rank in sorted(set(ranking.values())):
            tied = [name for name, own in ranking.items() if own == rank]
            worse = [name for name, own in ranking.items() if own > rank]
            for size in range(len(tied), 0, -1):
                for left in combinations(tied, size):
                    # What is drawn from itself says nothing.
                    if size + len(worse) > 1:
                        yield left, [*left, *worse], 1 / math.comb(len(tied), size)


def _strengths(drawn_SA: Floats, rest_SA: Floats) -> Floats:
    """From S stages: how much of what was drawn, and from what."""
    weight_S = drawn_SA.sum(1)

    def likelihood(theta_EA: Floats) -> tuple[Floats, Floats, Floats]:
        theta = theta_EA[0]
        exponent = np.exp(theta - theta.max()) * rest_SA
        total = exponent.sum(1, keepdims=True)
        p = exponent / total
        value = drawn_SA.sum(0) @ theta - weight_S @ (np.log(total[:, 0]) + theta.max())
        gradient = (drawn_SA - weight_S[:, None] * p).sum(0)
        hessian = (p * weight_S[:, None]).T @ p - np.diag(weight_S @ p)
        return np.array([value]), gradient[None], hessian[None]

    theta = maximize(likelihood, np.zeros((1, drawn_SA.shape[1])), drawn_SA.shape[1])[0]
    return theta - theta.mean()
