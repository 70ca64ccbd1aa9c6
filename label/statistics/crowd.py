"""Strengths of policies and reliability of labelers together, from pairwise votes.

    CrowdBT       P(a over b by w) = η_w σ(θ_a − θ_b) + (1 − η_w) σ(θ_b − θ_a)      (Chen et al. 2013)
    temperature   P(a over b by w) = σ(β_w (θ_a − θ_b)),  Π β_w = 1

η is the chance that a labeler means what he clicks: ½ is a random clicker, below it one who inverts
the scale. β is 0 for a random clicker, and large for one who sees small differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from label.statistics.estimate import Floats

Likelihood = Callable[[Floats, Floats], tuple[float, Floats]]
"""Parameters and wins (W, A, A) -> log-likelihood and its gradient."""


@dataclass(frozen=True)
class CrowdModel:
    theta_A: Floats
    """Log-strengths, sum 0."""
    reliability_W: Floats
    """η or β of each labeler."""
    log_likelihood: float

    def weights(self) -> Floats:
        """(W,) weights for training, mean 1: 2η − 1, and 0 for labelers at or below chance."""
        raw = np.maximum(0.0, 2 * self.reliability_W - 1)
        if raw.sum() == 0:
            return np.ones_like(raw)
        return np.asarray(raw / raw.mean())


def crowd_bt(wins_WAA: Floats, prior: float = 0.0) -> CrowdModel:
    """`wins_WAA[w, a, b]`: how often labeler w preferred a to b, a tie half each way. `prior` is
    the weight of a tie of each pair, by nobody.

    Swapping σ for its complement in all labelers at once gives the same likelihood; the start says
    that they are right more often than not. Raises ArithmeticError if the optimizer does not
    converge."""
    wins_WAA = np.asarray(wins_WAA, float)
    labelers, policies = wins_WAA.shape[:2]
    start = np.concatenate([np.zeros(policies), np.full(labelers, 1.0)])
    start[:policies] = _standardized(wins_WAA.sum(0))
    solution, value = _fit(crowd_bt_likelihood, start, wins_WAA, prior)
    theta = solution[:policies]
    return CrowdModel(theta - theta.mean(), expit(solution[policies:]), value)


def temperatures(wins_WAA: Floats, prior: float = 0.0) -> CrowdModel:
    """As `crowd_bt`, with β instead of η."""
    wins_WAA = np.asarray(wins_WAA, float)
    labelers, policies = wins_WAA.shape[:2]
    start = np.concatenate([_standardized(wins_WAA.sum(0)), np.zeros(labelers)])
    solution, value = _fit(temperature_likelihood, start, wins_WAA, prior)
    # Only the products βθ count: the scale goes where Π β = 1.
    log_beta = solution[policies:]
    theta = solution[:policies] * np.exp(log_beta.mean())
    return CrowdModel(theta - theta.mean(), np.exp(log_beta - log_beta.mean()), value)


def crowd_bt_likelihood(parameters: Floats, wins_WAA: Floats) -> tuple[float, Floats]:
    """Log-likelihood and gradient for parameters (θ, logit η)."""
    policies = wins_WAA.shape[1]
    theta, eta = parameters[:policies], expit(parameters[policies:])[:, None, None]
    p = expit(theta[:, None] - theta[None, :])[None]
    chance = np.maximum(eta * p + (1 - eta) * (1 - p), 1e-300)
    ratio = wins_WAA / chance
    by_difference = (ratio * (2 * eta - 1) * p * (1 - p)).sum(0)
    by_eta = (ratio * (2 * p - 1)).sum((1, 2)) * (eta * (1 - eta))[:, 0, 0]
    gradient = np.concatenate([by_difference.sum(1) - by_difference.sum(0), by_eta])
    return float((wins_WAA * np.log(chance)).sum()), gradient


def temperature_likelihood(parameters: Floats, wins_WAA: Floats) -> tuple[float, Floats]:
    """Log-likelihood and gradient for parameters (θ, log β)."""
    policies = wins_WAA.shape[1]
    theta, beta = parameters[:policies], np.exp(parameters[policies:])[:, None, None]
    difference = (theta[:, None] - theta[None, :])[None]
    scaled = beta * difference
    missed = wins_WAA * expit(-scaled)
    by_difference = (missed * beta).sum(0)
    by_beta = (missed * scaled).sum((1, 2))
    gradient = np.concatenate([by_difference.sum(1) - by_difference.sum(0), by_beta])
    return float(-(wins_WAA * np.logaddexp(0, -scaled)).sum()), gradient


def _standardized(wins_AA: Floats) -> Floats:
    """Logits of the shares of wins, as a start."""
    won, lost = wins_AA.sum(1) + 1, wins_AA.sum(0) + 1
    logits = np.log(won / lost)
    return np.asarray(logits - logits.mean())


def _fit(likelihood: Likelihood, start: Floats, wins_WAA: Floats, prior: float) -> tuple[Floats, float]:
    policies = wins_WAA.shape[1]
    prior_AA = prior / 2 * (1 - np.eye(policies))

    def loss(parameters: Floats) -> tuple[float, Floats]:
        value, gradient = likelihood(parameters, wins_WAA)
        theta = parameters[:policies]
        difference = theta[:, None] - theta[None, :]
        value -= (prior_AA * np.logaddexp(0, -difference)).sum()
        missed = prior_AA * expit(-difference)
        gradient[:policies] += missed.sum(1) - missed.sum(0)
        # Along a constant added to θ nothing changes; this holds its sum at 0.
        value -= 0.5 * theta.sum() ** 2
        gradient[:policies] -= theta.sum()
        return -value, -gradient

    # Parameters of a labeler who is always, or never, right run to infinity: cut where it no longer
    # matters.
    bounds = [(-15.0, 15.0)] * len(start)
    options = {"maxiter": 5000, "maxfun": 50_000, "ftol": 1e-15, "gtol": 1e-9}
    result = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    if not np.isfinite(result.fun) or result.status == 1:
        raise ArithmeticError(f"the labelers' model did not converge: {result.message}")
    return result.x, -float(result.fun)
