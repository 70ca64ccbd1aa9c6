"""The pairs of a ranking, for formats that know two responses only."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

from label.formats.rows import Row


class Pair(NamedTuple):
    better: int
    """Number of the response; of equal ones the first."""
    worse: int
    margin: int
    """Places between them; 0 for a tie."""


def pairs_of(row: Row) -> Iterator[Pair]:
    ranks = row["ranks"]
    for first, second in combinations(range(len(ranks)), 2):
        if ranks[first] <= ranks[second]:
            yield Pair(first, second, ranks[second] - ranks[first])
        else:
            yield Pair(second, first, ranks[first] - ranks[second])
