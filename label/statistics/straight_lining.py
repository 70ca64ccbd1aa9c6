"""Whether a person gives the same answer whatever is shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from label.statistics.estimate import Estimate
from label.statistics.proportions import wilson


@dataclass(frozen=True)
class StraightLining:
    share: Estimate
    """Of the items, those with the commonest answer."""
    answer: Hashable
    """The commonest answer; None without items."""


def straight_lining(answers: Iterable[Hashable]) -> StraightLining:
    """Each answer as it looks on the screen: ranks, or ratings, by shown place. As the order is
    drawn for every item, one who reads gives the same answer no oftener than chance has it, except
    for pairs, of which there are only three answers."""
    counts = Counter(answers)
    if not counts:
        return StraightLining(wilson(0, 0), None)
    answer, most = counts.most_common(1)[0]
    return StraightLining(wilson(most, sum(counts.values())), answer)
