"""Resampling of whole items: all votes of an item come together or not at all.

Votes of one item share its prompt and its responses. Resampled one by one they look more
informative than they are, and intervals come out too narrow (Efron and Tibshirani 1993, section
8.3)."""

from __future__ import annotations

import numpy as np

from label.statistics.estimate import Floats

DRAWS = 1000


def item_weights(items: int, draws: int, rng: np.random.Generator) -> Floats:
    """(E, I): how often each item occurs in each resample of as many items as there are."""
    if items == 0:
        return np.zeros((draws, 0))
    return rng.multinomial(items, np.full(items, 1 / items), size=draws).astype(np.float64)


def resampled_sums(sums_I: Floats, weights_EI: Floats) -> Floats:
    """(E, …): sums over the items of each resample of an array whose first axis is items."""
    flat = sums_I.reshape(len(sums_I), -1)
    return (weights_EI @ flat).reshape(len(weights_EI), *sums_I.shape[1:])
