"""Bradley-Terry with ties of their own: P(tie) ∝ ν√(π_a π_b) (Davidson 1970).

A tie then says that two policies are close, where Bradley-Terry takes it for half a win of each."""

from __future__ import annotations

import numpy as np

from label.statistics.bootstrap import DRAWS, item_weights, resampled_sums
from label.statistics.bradley_terry import PRIOR, Ratings
from label.statistics.estimate import Floats, from_draws
from label.statistics.newton import maximize
from label.statistics.votes import VoteCounts


def davidson(
    counts: VoteCounts, rng: np.random.Generator, prior: float = PRIOR, draws: int = DRAWS
) -> Ratings:
    """The ratings with their `tie`. Raises ArithmeticError with `prior=0` if there is no tie at
    all, or no finite strength."""
    theta, nu = _strengths(counts.wins_IAA.sum(0)[None], counts.ties_IAA.sum(0)[None], prior)
    weights = item_weights(counts.items, draws, rng)
    wins, ties = resampled_sums(counts.wins_IAA, weights), resampled_sums(counts.ties_IAA, weights)
    theta_EA, nu_E = _strengths(wins, ties, prior or 1e-3)
    tie = from_draws(float(nu[0]), nu_E, counts.items)
    return Ratings(counts.names, theta[0], theta_EA, counts.items, counts.votes, tie)


def _strengths(wins_EAA: Floats, ties_EAA: Floats, prior: float) -> tuple[Floats, Floats]:
    """Log-strengths (E, A) and ν (E,). `prior` ties and as many wins of each are added to every
    pair: without ties ν would be 0, and without wins infinite."""
    count = wins_EAA.shape[-1]
    other = prior * (1 - np.eye(count))
    first, second = np.triu_indices(count, 1)
    wins, ties = wins_EAA + other / 2, ties_EAA + other
    # One entry a pair: wins of the first, wins of the second, ties.
    outcomes = np.stack([wins[:, first, second], wins[:, second, first], ties[:, first, second]], -1)
    if prior == 0 and (ties.sum((1, 2)) == 0).any():
        raise ArithmeticError("no ties: ν is 0 and its logarithm infinite; use a prior above 0")
    # Log-odds of the outcomes are linear in the parameters (θ, log ν): features (pairs, 3, A+1).
    features = np.zeros((len(first), 3, count + 1))
    pair = np.arange(len(first))
    features[pair, 0, first] = features[pair, 1, second] = 1
    features[pair, 2, first] = features[pair, 2, second] = 0.5
    features[:, 2, count] = 1
    total = outcomes.sum(-1)

    def likelihood(parameters: Floats) -> tuple[Floats, Floats, Floats]:
        scores = np.einsum("jop,ep->ejo", features, parameters)
        top = scores.max(-1, keepdims=True)
        norm = top + np.log(np.exp(scores - top).sum(-1, keepdims=True))
        p = np.exp(scores - norm)
        value = (outcomes * (scores - norm)).sum((1, 2))
        gradient = np.einsum("ejo,jop->ep", outcomes - total[..., None] * p, features)
        expected = np.einsum("ejo,jop->ejp", p, features)
        weighted = total[..., None] * p
        hessian = np.einsum("ej,ejp,ejq->epq", total, expected, expected, optimize=True)
        hessian -= np.einsum("ejo,jop,joq->epq", weighted, features, features, optimize=True)
        return value, gradient, hessian

    solution = maximize(likelihood, np.zeros((len(wins), count + 1)), count)
    theta = solution[:, :count] - solution[:, :count].mean(1, keepdims=True)
    return theta, np.exp(solution[:, count])
