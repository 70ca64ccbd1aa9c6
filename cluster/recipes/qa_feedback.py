"""QA-Feedback (Wu et al. 2023, arXiv:2306.01693): four answers to a question, compared pair by pair by people.

`convert` functions of `data`, by name from the config, for the published file dev_feedback.json. People saw the passages that
the answers were written from, and a small model cannot look up words in 450 others. So each answer tells it: a word gets a
mark if no passage has it after the word before it.
"""

from __future__ import annotations

import re
from itertools import combinations, pairwise
from typing import Any

MARK = "*"
PAIRS = list(combinations(range(4), 2))  # the order of a row's six comparisons


def documents(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The passages, and each answer after its question; nothing that people said of the answers."""
    return [
        {"text": text}
        for text in (*passages(row), *(f"{row['question']}\n{answer}" for answer in answers(row)))
    ]


def comparisons(row: dict[str, Any]) -> list[dict[str, Any]]:
    """One ranking of the four, ties kept; where the comparisons contradict each other, a ranking of two for each."""
    prompt, told, ranks = row["question"], answers(row), weak_order(row["preference"])
    if ranks:
        return [{"prompt": prompt, "responses": told, "ranks": ranks}]
    return [
        {"prompt": prompt, "responses": [told[a], told[b]], "ranks": {0: [1, 1], 1: [1, 2], 2: [2, 1]}[won]}
        for (a, b), won in zip(PAIRS, row["preference"], strict=True)
    ]


def passages(row: dict[str, Any]) -> list[str]:
    return [" ".join(sentences[1:]) for sentences in row["passages"]]


def answers(row: dict[str, Any]) -> list[str]:
    """The four answers with their marks."""
    known = {pair for text in passages(row) for pair in pairwise(["", *plain(text)])}
    return [marked(row[f"prediction {i}"], known) for i in range(1, 5)]


def marked(answer: str, known: set[tuple[str, str]]) -> str:
    """The answer with a mark before every word that does not follow the one before it in `known`; the first may stand
    anywhere."""
    words, firsts = answer.split(), {word for _, word in known}
    told, before = [], None
    for word in words:
        bare = "".join(plain(word))
        found = bare in firsts if before is None else (before, bare) in known
        told.append(word if found or not bare else MARK + word)
        before = bare or before
    return " ".join(told)


def plain(text: str) -> list[str]:
    """Words in lower case, without what is no letter or digit."""
    return [bare for word in text.lower().split() if (bare := re.sub(r"\W", "", word))]


def weak_order(preference: list[int]) -> list[int] | None:
    """Ranks (1 best) that agree with all six comparisons (0 tie, 1 the first is better, 2 the second); None if none do."""
    wins = [0.0] * 4
    for (a, b), won in zip(PAIRS, preference, strict=True):
        wins[a] += {0: 0.5, 1: 1.0, 2: 0.0}[won]
        wins[b] += {0: 0.5, 1: 0.0, 2: 1.0}[won]
    ranks = [1 + sum(w > own for w in wins) for own in wins]
    found = [(ranks[a] < ranks[b]) + 2 * (ranks[a] > ranks[b]) for a, b in PAIRS]
    return ranks if found == preference else None
