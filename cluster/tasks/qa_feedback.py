"""QA-Feedback (Wu et al. 2023, arXiv:2306.01693): four answers to a question, compared pair by pair by people.

`convert` functions of `data`, by name from the config, for the published file dev_feedback.json.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

EVIDENCE_WORDS = 100
PAIRS = list(combinations(range(4), 2))  # the order of a row's six comparisons


def documents(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The passages, and each answer after its question; nothing that people said of the answers."""
    texts = [" ".join(sentences[1:]) for sentences in row["passages"]]
    return [{"text": text} for text in (*texts, *(f"{question(row)}\n{answer}" for answer in answers(row)))]


def comparisons(row: dict[str, Any]) -> list[dict[str, Any]]:
    """One ranking of the four, ties kept; where the comparisons contradict each other, a ranking of two for each."""
    prompt, told, ranks = question(row), answers(row), weak_order(row["preference"])
    if ranks:
        return [{"prompt": prompt, "responses": told, "ranks": ranks}]
    return [
        {"prompt": prompt, "responses": [told[a], told[b]], "ranks": {0: [1, 1], 1: [1, 2], 2: [2, 1]}[won]}
        for (a, b), won in zip(PAIRS, row["preference"], strict=True)
    ]


def question(row: dict[str, Any]) -> str:
    """The question after the first words of what was found for it, which people saw too."""
    found = " ".join(" ".join(sentences[1:]) for sentences in row["passages"]).split()
    return f"{' '.join(found[:EVIDENCE_WORDS])}\n{row['question']}"


def answers(row: dict[str, Any]) -> list[str]:
    return [row[f"prediction {i}"] for i in range(1, 5)]


def weak_order(preference: list[int]) -> list[int] | None:
    """Ranks (1 best) that agree with all six comparisons (0 tie, 1 the first is better, 2 the second); None if none do."""
    wins = [0.0] * 4
    for (a, b), won in zip(PAIRS, preference, strict=True):
        wins[a] += {0: 0.5, 1: 1.0, 2: 0.0}[won]
        wins[b] += {0: 0.5, 1: 0.0, 2: 1.0}[won]
    ranks = [1 + sum(w > own for w in wins) for own in wins]
    found = [(ranks[a] < ranks[b]) + 2 * (ranks[a] > ranks[b]) for a, b in PAIRS]
    return ranks if found == preference else None
