"""Simulated labelers: they see what the oracle sees, through noise, each with a hand of their own."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from cluster.world.oracle import judge, utility


@dataclass(frozen=True)
class Labeler:
    name: str
    noise: float
    """Standard deviation of what this labeler feels about a response, in units of utility."""
    tie: float = 0.5
    """Responses that feel closer than this are ranked as equal."""

    def rank(self, row: dict[str, Any], responses: list[str], ended: list[bool], draw: random.Random) -> list[int]:
        """Ranks from 1 (best), equal for ties. The same text always feels the same to the same labeler in one ranking."""
        felt: dict[tuple[str, bool], float] = {}
        for key in zip(responses, ended, strict=True):
            if key not in felt:
                felt[key] = utility(judge(row, *key)) + draw.gauss(0, self.noise)
        worth = [felt[key] for key in zip(responses, ended, strict=True)]
        rank, level, ranks = 0, float("inf"), {}
        for w in sorted(set(worth), reverse=True):
            if w < level - self.tie:
                rank, level = rank + 1, w
            ranks[w] = rank
        return [ranks[w] for w in worth]


def make_labelers(count: int, seed: int, noise: float) -> list[Labeler]:
    """`count` labelers whose noise differs by up to a quarter; 1.0 gives a pairwise agreement near 73%."""
    draw = random.Random(seed)
    return [Labeler(f"labeler-{i + 1}", 1.9 * noise * draw.uniform(0.75, 1.25)) for i in range(count)]
