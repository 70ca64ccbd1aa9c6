"""Which prompts an iteration samples, and with which seeds."""

from __future__ import annotations

import numpy as np


def prompts_of(rounds: int, available: int, count: int, seed: int) -> np.ndarray:
    """The prompts after so many rounds of sampling: `count` consecutive ones of an endless row of permutations of all."""
    places = np.arange(rounds * count, (rounds + 1) * count)
    epochs = np.unique(places // available)
    orders = {int(e): np.random.default_rng([seed, 3, int(e)]).permutation(available) for e in epochs}
    return np.array([orders[int(p // available)][p % available] for p in places])


def sample_seeds(seed: int, rounds: int, count: int) -> list[int]:
    """One seed for each response of a round: it belongs to the sample, whichever engine draws it."""
    return np.random.default_rng([seed, 4, rounds]).integers(0, 2**31, size=count).tolist()
