"""How fast a person reads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from label.statistics.estimate import Estimate, undefined
from label.statistics.proportions import wilson

FASTEST_WORDS_PER_MINUTE = 900.0
"""Faster than anybody reads: silent reading of English non-fiction is at 175 to 300 (Brysbaert
2019)."""


@dataclass(frozen=True)
class Speed:
    words_per_minute: Estimate
    """Median over items, with its distribution-free interval from order statistics."""
    too_fast: Estimate
    """Share of the items that were answered faster than anybody reads."""


def speed(items: Iterable[tuple[int, int]], fastest: float = FASTEST_WORDS_PER_MINUTE) -> Speed:
    """Of (words shown, active milliseconds) of items. Those without a time do not count."""
    rates = []
    for words, active_ms in items:
        if active_ms > 0:
            rates.append(60_000 * words / active_ms)
    too_fast = wilson(sum(rate > fastest for rate in rates), len(rates))
    if not rates:
        return Speed(undefined("no item with a time"), too_fast)
    return Speed(_median(np.sort(rates)), too_fast)


def _median(ordered: np.ndarray) -> Estimate:
    n = len(ordered)
    # Ranks n/2 ± z√n/2 of the order statistics.
    margin = 1.96 * np.sqrt(n) / 2
    low, high = int(np.floor(n / 2 - margin)), int(np.ceil(n / 2 + margin))
    value = float(np.median(ordered))
    if low < 1 or high > n:
        return Estimate(value, n=n)
    return Estimate(value, float(ordered[low - 1]), float(ordered[high - 1]), n)
