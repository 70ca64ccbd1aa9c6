"""Simulated labelers: they judge as the oracle does, except that each misjudges some responses and has a taste.

Misjudging is an error about the truth. Taste only decides between responses that are equally good, as people do
who differ without either being wrong; most of the disagreement between labelers is of that kind.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from cluster.quickstart.oracle import judge, utility

BEST = 6.0  # utility of a right, polite, coherent response


@dataclass(frozen=True)
class Labeler:
    name: str
    error_rate: float
    """Share of the responses that this labeler misjudges: feels to be worth anything from 0 to the best."""
    taste: float = 0.4
    """Standard deviation of the liking for one response or another, in units of utility."""
    tie: float = 0.15
    """Responses that feel closer than this are ranked as equal."""

    def rank(
        self, row: dict[str, Any], responses: list[str], ended: list[bool], draw: random.Random
    ) -> list[int]:
        """Ranks from 1 (best), equal for ties. The same text feels the same to the same labeler in one ranking."""
        felt: dict[tuple[str, bool], float] = {}
        for key in zip(responses, ended, strict=True):
            if key not in felt:
                worth = (
                    draw.uniform(0, BEST) if draw.random() < self.error_rate else utility(judge(row, *key))
                )
                felt[key] = worth + draw.gauss(0, self.taste)
        feelings = [felt[key] for key in zip(responses, ended, strict=True)]
        rank, level, ranks = 0, float("inf"), {}
        for feeling in sorted(set(feelings), reverse=True):
            if feeling < level - self.tie:
                rank, level = rank + 1, feeling
            ranks[feeling] = rank
        return [ranks[feeling] for feeling in feelings]


def make_labelers(count: int, seed: int, error_rate: float) -> list[Labeler]:
    """`count` labelers whose error rates differ from the mean by up to a quarter."""
    draw = random.Random(seed)
    return [Labeler(f"labeler-{i + 1}", error_rate * draw.uniform(0.75, 1.25)) for i in range(count)]
