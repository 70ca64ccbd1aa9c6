"""QA-Feedback (Wu et al. 2023, arXiv:2306.01693): four answers to a question, compared pair by pair by people.

`convert` functions of `data`, by name from the config, for the published file dev_feedback.json.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

PAIRS = list(combinations(range(4), 2))  # the order of a row's six comparisons


def passages(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The passages that the answers draw on, as documents; nothing that people wrote about the answers."""
    return [{"text": " ".join(sentences[1:])} for sentences in row["passages"]]


def comparisons(row: dict[str, Any]) -> list[dict[str, Any]]:
    """One ranking of the four, ties kept; where the comparisons contradict each other, a ranking of two for each."""
    answers = [row[f"prediction {i}"] for i in range(1, 5)]
    ranks = weak_order(row["preference"])
    if ranks:
        return [{"prompt": row["question"], "responses": answers, "ranks": ranks}]
    return [
        {"prompt": row["question"], "responses": [answers[a], answers[b]], "ranks": {0: [1, 1], 1: [1, 2], 2: [2, 1]}[won]}
        for (a, b), won in zip(PAIRS, row["preference"], strict=True)
    ]


def weak_order(preference: list[int]) -> list[int] | None:
    """Ranks (1 best) that agree with all six comparisons (0 tie, 1 the first is better, 2 the second); None if none do."""
    wins = [0.0] * 4
    for (a, b), won in zip(PAIRS, preference, strict=True):
        wins[a] += {0: 0.5, 1: 1.0, 2: 0.0}[won]
        wins[b] += {0: 0.5, 1: 0.0, 2: 1.0}[won]
    ranks = [1 + sum(w > own for w in wins) for own in wins]
    found = [(ranks[a] < ranks[b]) + 2 * (ranks[a] > ranks[b]) for a, b in PAIRS]
    return ranks if found == preference else None
