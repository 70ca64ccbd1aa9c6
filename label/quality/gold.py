"""Accuracy of a person on items with a known answer."""

from __future__ import annotations

from collections.abc import Iterable

from label.statistics.estimate import Estimate
from label.statistics.pair_agreement import Ranking, compare
from label.statistics.proportions import ratio_by_item, wilson


def gold_accuracy(answers: Iterable[tuple[Ranking, Ranking]]) -> Estimate:
    """Of (ranks, gold ranks): share of the pairs that gold orders strictly and the person orders alike.

    A tie of the person counts half, as much as guessing: one who ties everything has 50%, like one who
    clicks at random. The interval is Wilson's where each item has one pair, and otherwise by item,
    since the pairs of one ranking hang together."""
    right, total = [], []
    for ranks, gold in answers:
        counts, ordered = compare(ranks, gold), compare(gold, gold).comparable
        right.append(counts.agreeing + (ordered - counts.comparable) / 2)
        total.append(ordered)
    if max(total, default=0) <= 1:
        return wilson(sum(right), sum(total))
    return ratio_by_item(right, total)
