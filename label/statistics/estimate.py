"""A figure with its 95% interval, its number of observations, and the reason where it is
undefined."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

Z = 1.959963984540054
"""Quantile of the normal distribution for 95% intervals."""


@dataclass(frozen=True)
class Estimate:
    """`value` is None where the data do not define it; `why` then says what is missing."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    """Independent observations behind the value: items, not votes, where votes of an item hang
    together."""
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        if self.value is None:
            return f"undefined ({self.why})"
        if self.low is None or self.high is None:
            return f"{self.value:.3f} (n {self.n})"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] (n {self.n})"


def undefined(why: str, n: int = 0) -> Estimate:
    return Estimate(None, n=n, why=why)


def from_draws(value: float, draws_E: Floats, n: int) -> Estimate:
    """The value with the 2.5% and 97.5% percentiles of its bootstrap draws. Draws that are not
    finite (a resample without variation) are left out; with fewer than half of them left there is
    no interval."""
    finite = draws_E[np.isfinite(draws_E)]
    if 2 * len(finite) < len(draws_E) or not len(finite):
        return Estimate(float(value), n=n)
    low, high = np.percentile(finite, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high), n)
