"""Chance-corrected agreement on categories, where everybody labeled everything: Cohen's and Fleiss'
κ."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from label.statistics.bootstrap import DRAWS, item_weights, resampled_sums
from label.statistics.estimate import Estimate, Floats, from_draws, undefined


def cohen_kappa(table: npt.ArrayLike, rng: np.random.Generator, draws: int = DRAWS) -> Estimate:
    """κ = (p_o − p_e)/(1 − p_e) of two labelers (Cohen 1960). `table[a][b]` counts the items that
    one put into category a and the other into b. The interval resamples items."""
    table_OO = np.asarray(table, float)
    n = int(table_OO.sum())
    if n == 0:
        return undefined("no item labeled by both")
    value = _cohen(table_OO)
    if not np.isfinite(value):
        return undefined("no variation: both used one category throughout", n)
    resampled = rng.multinomial(n, (table_OO / n).ravel(), size=draws).astype(float)
    return from_draws(float(value), _cohen(resampled.reshape(draws, *table_OO.shape)), n)


def _cohen(table: Floats) -> Floats:
    """κ of tables (…, O, O); not finite without variation."""
    shares = table / table.sum((-2, -1), keepdims=True)
    observed = np.trace(shares, axis1=-2, axis2=-1)
    expected = (shares.sum(-1) * shares.sum(-2)).sum(-1)
    return _corrected(observed, expected)


def fleiss_kappa(counts: npt.ArrayLike, rng: np.random.Generator, draws: int = DRAWS) -> Estimate:
    """κ of several labelers (Fleiss 1971). `counts[i][c]` says how many put item i into category c,
    and is equally many in sum for every item (ValueError otherwise: Krippendorff's α takes any
    number)."""
    counts_IO = np.asarray(counts, float)
    if len(counts_IO) == 0:
        return undefined("no items")
    labels = counts_IO.sum(1)
    if not (labels == labels[0]).all() or labels[0] < 2:
        raise ValueError("Fleiss' κ: every item needs the same number of labels, at least two; use alpha")
    of_item_I = (counts_IO * (counts_IO - 1)).sum(1) / (labels * (labels - 1))
    sums = np.column_stack([of_item_I, counts_IO / labels[:, None]])
    value = _fleiss(sums.sum(0), len(sums))
    if not np.isfinite(value):
        return undefined("no variation: everything is in one category", len(sums))
    resampled = resampled_sums(sums, item_weights(len(sums), draws, rng))
    return from_draws(float(value), _fleiss(resampled, len(sums)), len(sums))


def _fleiss(sums: Floats, items: int) -> Floats:
    """κ from sums (…, 1+O) over items of the agreement of an item and of its shares of
    categories."""
    means = sums / items
    return _corrected(means[..., 0], (means[..., 1:] ** 2).sum(-1))


def _corrected(observed: Floats, expected: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        # Sums of shares miss 1 by rounding, which would make a figure of nothing.
        rest = np.where(np.isclose(expected, 1), 0.0, 1 - expected)
        return np.where(rest > 0, (observed - expected) / rest, np.nan)
