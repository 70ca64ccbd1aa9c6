"""Blind comparisons of policies as counts of wins and ties, item by item."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from label.statistics.estimate import Floats


class Vote(NamedTuple):
    """One comparison of the responses of two policies to the prompt of an item."""

    item: Hashable
    first: str
    second: str
    outcome: float
    """1 if the first won, 0 if the second did, ½ for a tie."""


@dataclass(frozen=True)
class VoteCounts:
    names: tuple[str, ...]
    """The A policies, in alphabetical order."""
    wins_IAA: Floats
    """wins_IAA[i, a, b]: how often a won over b in item i."""
    ties_IAA: Floats
    """How often a and b were tied in item i; symmetric."""

    @staticmethod
    def of(votes: Iterable[Vote]) -> VoteCounts:
        """Raises ValueError for a policy that is compared with itself, and for other outcomes."""
        votes = list(votes)
        names = sorted({name for vote in votes for name in (vote.first, vote.second)})
        number = {name: a for a, name in enumerate(names)}
        items: dict[Hashable, int] = {}
        for vote in votes:
            items.setdefault(vote.item, len(items))
        shape = (len(items), len(names), len(names))
        wins, ties = np.zeros(shape), np.zeros(shape)
        for vote in votes:
            i, a, b = items[vote.item], number[vote.first], number[vote.second]
            if a == b or vote.outcome not in (0, 0.5, 1):
                raise ValueError(f"{vote}: expected two policies, and an outcome of 0, 0.5 or 1")
            if vote.outcome == 0.5:
                ties[i, a, b] += 1
                ties[i, b, a] += 1
            elif vote.outcome == 1:
                wins[i, a, b] += 1
            else:
                wins[i, b, a] += 1
        return VoteCounts(tuple(names), wins, ties)

    @property
    def items(self) -> int:
        return len(self.wins_IAA)

    @property
    def votes(self) -> int:
        return int(self.wins_IAA.sum() + self.ties_IAA.sum() / 2)


def ranking_votes(item: Hashable, policies: Iterable[str], ranks: Iterable[int]) -> list[Vote]:
    """The votes that a ranking of several responses casts on the policies they come from. Two
    responses of one policy compare nothing."""
    entries = list(zip(policies, ranks, strict=True))
    votes = []
    for place, (first, first_rank) in enumerate(entries):
        for second, second_rank in entries[place + 1 :]:
            if first != second:
                outcome = 0.5 + 0.5 * float(np.sign(second_rank - first_rank))
                votes.append(Vote(item, first, second, outcome))
    return votes
