"""Strengths of policies from pairwise votes: P(a wins over b) = σ(θ_a − θ_b), a tie half a win for
each (Bradley and Terry 1952)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from label.statistics.bootstrap import DRAWS, item_weights, resampled_sums
from label.statistics.estimate import Estimate, Floats, from_draws
from label.statistics.newton import maximize
from label.statistics.votes import VoteCounts

PRIOR = 0.2
"""Weight of a tie that is added for each pair of policies. Without it the strength of a policy that
lost every comparison is minus infinity, and solvers return whatever they had when they gave up."""


@dataclass(frozen=True)
class Ratings:
    """Log-strengths that sum to 0, with intervals from a bootstrap by item."""

    names: tuple[str, ...]
    theta_A: Floats
    draws_EA: Floats
    """Log-strengths of every bootstrap draw."""
    items: int
    votes: int
    tie: Estimate | None = None
    """ν of Davidson's model: how often equal policies tie, ν/(2+ν) of their comparisons."""

    def strength(self, name: str) -> Estimate:
        a = self.names.index(name)
        return from_draws(self.theta_A[a], self.draws_EA[:, a], self.items)

    def win_rate(self, name: str, other: str) -> Estimate:
        """Of `name` over `other`, ties half."""
        a, b = self.names.index(name), self.names.index(other)
        draws = win_probability(self.draws_EA[:, a] - self.draws_EA[:, b])
        value = float(win_probability(self.theta_A[a] - self.theta_A[b]))
        return from_draws(value, draws, self.items)

    def ranking(self) -> list[str]:
        return [self.names[a] for a in np.argsort(-self.theta_A, kind="stable")]

    def share_first(self, name: str) -> float:
        """In how many of the draws this policy is the best."""
        return float((self.draws_EA.argmax(1) == self.names.index(name)).mean())

    def to_json(self) -> dict[str, Any]:
        strengths = {name: self.strength(name).to_json() for name in self.ranking()}
        tie = self.tie
        return {
            "strengths": strengths,
            "share_first": {name: self.share_first(name) for name in self.ranking()},
            "tie": tie and tie.to_json(),
            "items": self.items,
            "votes": self.votes,
        }


def win_probability(difference: Floats) -> Floats:
    # Not 1/(1+exp(−x)), which overflows for large −x.
    return 0.5 * (1 + np.tanh(difference / 2))


def bradley_terry(
    counts: VoteCounts, rng: np.random.Generator, prior: float = PRIOR, draws: int = DRAWS
) -> Ratings:
    """Raises ArithmeticError with `prior=0` where a policy has no finite strength: it, or a group
    of policies, won or lost all comparisons with the others."""
    scores_IAA = counts.wins_IAA + counts.ties_IAA / 2
    theta_A = strengths(scores_IAA.sum(0)[None], prior)[0]
    weights = item_weights(counts.items, draws, rng)
    # A draw may separate the policies though the votes do not.
    draws_EA = strengths(resampled_sums(scores_IAA, weights), prior or 1e-3)
    return Ratings(counts.names, theta_A, draws_EA, counts.items, counts.votes)


def strengths(scores_EAA: Floats, prior: float) -> Floats:
    """(E, A) log-strengths from E matrices of wins (ties half). The maximum of the likelihood is
    unique where every policy is connected to every other by wins in both directions (Ford 1957)."""
    count = scores_EAA.shape[-1]
    scores = scores_EAA + prior / 2 * (1 - np.eye(count))
    if prior == 0:
        _check_connected(scores)
    total = scores + scores.swapaxes(1, 2)

    def likelihood(theta: Floats) -> tuple[Floats, Floats, Floats]:
        difference = theta[:, :, None] - theta[:, None, :]
        p = win_probability(difference)
        value = -(scores * np.logaddexp(0, -difference)).sum((1, 2))
        gradient = (scores - total * p).sum(2)
        hessian = total * p * (1 - p)
        hessian[:, range(count), range(count)] = 0
        hessian -= np.eye(count) * hessian.sum(2)[:, :, None]
        return value, gradient, hessian

    theta = maximize(likelihood, np.zeros(scores.shape[:2]), count)
    return theta - theta.mean(1, keepdims=True)


def _check_connected(scores_EAA: Floats) -> None:
    reach = (scores_EAA > 0) | np.eye(scores_EAA.shape[-1], dtype=bool)
    for _ in range(scores_EAA.shape[-1]):
        reach = (reach.astype(int) @ reach.astype(int)) > 0
    if not reach.all():
        raise ArithmeticError(
            "some policies won or lost every comparison with the others, so that their strengths are "
            "infinite; use a prior above 0"
        )
