"""Krippendorff's α: chance-corrected agreement for any number of labelers and missing labels."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import compress
from typing import Literal

import numpy as np
import numpy.typing as npt

from label.statistics.bootstrap import DRAWS, item_weights, resampled_sums
from label.statistics.estimate import Estimate, Floats, from_draws, undefined

Level = Literal["nominal", "ordinal", "interval", "ratio"]
"""What a difference of two values means: another category, places apart among the values that
occur, their distance, or their distance relative to their size."""


def alpha(
    ratings: npt.ArrayLike,
    level: Level,
    rng: np.random.Generator,
    draws: int = DRAWS,
    groups: Sequence[Hashable] | None = None,
) -> Estimate:
    """α = 1 − D_o/D_e from coincidences (Krippendorff 2018, Content Analysis, chapter 12).

    `ratings` is (W, I), one row a labeler, NaN where there is no label. Items with fewer than two
    labels do not count. Unanimous data have no variation that agreement could be told from:
    undefined, not 1. The interval resamples items, or with `groups` (I,) whole groups of them, such
    as the pairs of one ranking."""
    ratings_WI = np.asarray(ratings, float)
    used = (~np.isnan(ratings_WI)).sum(0) >= 2
    ratings_WI = ratings_WI[:, used]
    if ratings_WI.shape[1] == 0:
        return undefined("no item has two labels")
    values_O = np.unique(ratings_WI[~np.isnan(ratings_WI)])
    coincidences = _coincidences(ratings_WI, values_O)
    if groups is not None:
        coincidences = _summed(coincidences, list(compress(groups, used)))
    n = len(coincidences)
    if len(values_O) < 2:
        return undefined("no variation: every label is the same", n)
    value = _alpha(coincidences.sum(0), values_O, level)
    resampled = resampled_sums(coincidences, item_weights(n, draws, rng))
    return from_draws(float(value), _alpha(resampled, values_O, level), n)


def _summed(coincidences: Floats, groups: list[Hashable]) -> Floats:
    number: dict[Hashable, int] = {}
    place = [number.setdefault(group, len(number)) for group in groups]
    sums = np.zeros((len(number), *coincidences.shape[1:]))
    np.add.at(sums, place, coincidences)
    return sums


def _coincidences(ratings_WI: Floats, values_O: Floats) -> Floats:
    """(I, O, O): ordered pairs of values in each item, each divided by its labels but one."""
    counts_IO = (ratings_WI[:, :, None] == values_O).sum(0).astype(float)
    pairs = counts_IO[:, :, None] * counts_IO[:, None, :]
    same = np.arange(len(values_O))
    pairs[:, same, same] -= counts_IO
    return pairs / (counts_IO.sum(1) - 1)[:, None, None]


def _alpha(coincidences: Floats, values_O: Floats, level: Level) -> Floats:
    """α of coincidence matrices (…, O, O); not finite without variation."""
    totals = coincidences.sum(-1)
    n = totals.sum(-1)
    distance = _squared_distance(totals, values_O, level)
    observed = (coincidences * distance).sum((-2, -1))
    expected = (totals[..., :, None] * totals[..., None, :] * distance).sum((-2, -1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(expected > 0, 1 - (n - 1) * observed / expected, np.nan)


def _squared_distance(totals: Floats, values_O: Floats, level: Level) -> Floats:
    """(…, O, O): δ² between values; for ordinal data it depends on how often the values occur."""
    first, second = values_O[:, None], values_O[None, :]
    if level == "nominal":
        return (first != second).astype(float)
    if level == "interval":
        return (first - second) ** 2
    if level == "ratio":
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(first == second, 0.0, ((first - second) / (first + second)) ** 2)
    # Σ of the totals from one value to the other, the two ends counted half.
    places = np.cumsum(totals, -1) - totals / 2
    return (places[..., :, None] - places[..., None, :]) ** 2
