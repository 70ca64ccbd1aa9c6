"""Logistic regression by Newton's method: of a win on whatever may explain it besides quality.

    logit P(first wins) = b0 + b1·Δlength

b0 is the preference for the place shown first, b1 that for length; b0 of the wins of one policy is
its length-controlled lead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit, ndtr

from label.statistics.estimate import Estimate, Floats, Z, undefined
from label.statistics.newton import maximize


@dataclass(frozen=True)
class Coefficient:
    estimate: Estimate
    error: float
    """Standard error; 0 where undefined."""
    z: float
    p: float


def logistic(
    wins: Sequence[float], features: npt.ArrayLike, items: Sequence[Any] | None = None
) -> list[Coefficient]:
    """Intercept first, then a coefficient for each column of `features` (n, columns). Ties (½)
    count half.

    With `items`, votes of the same item may hang together and the errors are those of Liang and
    Zeger (1986); without, votes are taken as independent. Where the features separate wins from
    losses there is no finite coefficient: undefined."""
    y = np.asarray(wins, float)
    x = np.column_stack([np.ones(len(y)), np.asarray(features, float).reshape(len(y), -1)])
    columns = x.shape[1]
    if np.linalg.matrix_rank(x) < columns:
        return _undefined(columns, "the features do not vary, or repeat each other", len(y))

    def likelihood(b_EP: Floats) -> tuple[Floats, Floats, Floats]:
        score = x @ b_EP[0]
        p = expit(score)
        value = y @ score - np.logaddexp(0, score).sum()
        hessian = -(x * (p * (1 - p))[:, None]).T @ x
        return np.array([value]), (x.T @ (y - p))[None], hessian[None]

    try:
        b = maximize(likelihood, np.zeros((1, columns)))[0]
    except ArithmeticError:
        return _undefined(columns, "the features tell wins from losses without exception", len(y))
    p = expit(x @ b)
    information = (x * (p * (1 - p))[:, None]).T @ x
    # A separated likelihood flattens out before Newton's steps become small.
    if np.linalg.cond(information) > 1e10 or ((p * (1 - p)) < 1e-8).all():
        return _undefined(columns, "the features tell wins from losses without exception", len(y))
    covariance = np.linalg.inv(information)
    if items is not None:
        covariance = covariance @ _score_covariance(x * (y - p)[:, None], items) @ covariance
    coefficients = []
    for value, error in zip(b, np.sqrt(np.diag(covariance)), strict=True):
        z = float(value / error)
        estimate = Estimate(float(value), float(value - Z * error), float(value + Z * error), len(y))
        coefficients.append(Coefficient(estimate, float(error), z, float(2 * ndtr(-abs(z)))))
    return coefficients


def _score_covariance(scores: Floats, items: Sequence[Any]) -> Floats:
    number: dict[Any, int] = {}
    place = [number.setdefault(item, len(number)) for item in items]
    sums = np.zeros((len(number), scores.shape[1]))
    np.add.at(sums, place, scores)
    return np.asarray(sums.T @ sums)


def _undefined(columns: int, why: str, n: int) -> list[Coefficient]:
    return [Coefficient(undefined(why, n), 0.0, 0.0, 1.0)] * columns
