"""Newton's method for concave log-likelihoods, many of them at once: one for each bootstrap
draw."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from label.statistics.estimate import Floats

Likelihood = Callable[[Floats], tuple[Floats, Floats, Floats]]
"""Parameters (E, P) -> log-likelihood (E,), gradient (E, P) and Hessian (E, P, P)."""

STEPS = 100
HALVINGS = 30
LARGEST_STEP = 3.0
TOLERANCE = 1e-7
"""Of the last step. Convergence is quadratic, so that what is missing after it is about its
square."""


def maximize(likelihood: Likelihood, start_EP: Floats, strengths: int = 0) -> Floats:
    """(E, P) parameters of the maxima. The first `strengths` parameters only count by their
    differences, and their sum stays that of the start.

    Raises ArithmeticError if a maximum is not reached: there is none at finite parameters."""
    point = start_EP.copy()
    # The likelihood is flat along a constant added to all strengths, where a step would be rounding
    # error divided by rounding error. This curvature leaves the sum where it is.
    constant = np.zeros(start_EP.shape[1])
    constant[:strengths] = 1
    curvature = np.outer(constant, constant)
    value, gradient, hessian = likelihood(point)
    for _ in range(STEPS):
        try:
            step = np.asarray(np.linalg.solve(curvature - hessian, gradient[:, :, None]), float)[:, :, 0]
        except np.linalg.LinAlgError:
            break
        largest = np.abs(step).max(1, initial=0.0)
        if (largest < TOLERANCE).all():
            return point + step
        shorter = np.minimum(1.0, LARGEST_STEP / np.maximum(largest, 1e-300))
        point, value, gradient, hessian = _improved(likelihood, point, value, step * shorter[:, None])
    raise ArithmeticError("the likelihood has no maximum at finite parameters")


def _improved(
    likelihood: Likelihood, point: Floats, value: Floats, step: Floats
) -> tuple[Floats, Floats, Floats, Floats]:
    """The point after the step, halved where the likelihood would fall by it, and what it has
    there."""
    for _ in range(HALVINGS):
        values, gradient, hessian = likelihood(point + step)
        worse = ~(values >= value - 1e-9 * (1 + np.abs(value)))
        if not worse.any():
            break
        step[worse] /= 2
    return point + step, values, gradient, hessian
