"""QA-Feedback (Wu et al. 2023, arXiv:2306.01693): four answers to a question, compared pair by pair
by people.

`convert` functions of `data`, by name from the config, for the published file dev_feedback.json.
People saw the passages that the answers were written from, and a small model cannot look up words
in 450 others. So each answer says it: a word gets a mark if no passage has it after the word before
it.
"""

from __future__ import annotations

import re
from itertools import combinations, pairwise
from typing import Any

MARK = "*"
PAIRS = list(combinations(range(4), 2))  # the order of a row's six comparisons

# How the file writes the result of a comparison.
TIE, FIRST_IS_BETTER, SECOND_IS_BETTER = 0, 1, 2
RANKS_OF_PAIR = {TIE: [1, 1], FIRST_IS_BETTER: [1, 2], SECOND_IS_BETTER: [2, 1]}
WINS_OF_FIRST = {TIE: 0.5, FIRST_IS_BETTER: 1.0, SECOND_IS_BETTER: 0.0}


def documents(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The passages, and each answer after its question; nothing that people said of the answers."""
    texts = passages(row)
    for answer in answers(row):
        texts.append(f"{row['question']}\n{answer}")
    return [{"text": text} for text in texts]


def comparisons(row: dict[str, Any]) -> list[dict[str, Any]]:
    """One ranking of the four, ties kept; where the comparisons contradict each other, a ranking of
    two for each."""
    prompt, responses, ranks = row["question"], answers(row), weak_order(row["preference"])
    if ranks:
        return [{"prompt": prompt, "responses": responses, "ranks": ranks}]
    pairs = []
    for (a, b), result in zip(PAIRS, row["preference"], strict=True):
        pair = [responses[a], responses[b]]
        pairs.append({"prompt": prompt, "responses": pair, "ranks": RANKS_OF_PAIR[result]})
    return pairs


def passages(row: dict[str, Any]) -> list[str]:
    """The texts that the answers were written from, without their titles."""
    # The first sentence of a passage is the title of its page.
    return [" ".join(sentences[1:]) for sentences in row["passages"]]


def answers(row: dict[str, Any]) -> list[str]:
    """The four answers with their marks."""
    word_pairs: set[tuple[str, str]] = set()
    for text in passages(row):
        # The empty word before the first makes the first word one that may follow something.
        word_pairs.update(pairwise(["", *plain(text)]))
    return [marked(row[f"prediction {i}"], word_pairs) for i in range(1, 5)]


def marked(answer: str, word_pairs: set[tuple[str, str]]) -> str:
    """The answer with a mark before every word that does not follow the one before it in
    `word_pairs`; its first word may be the second of any pair."""
    vocabulary = {word for _, word in word_pairs}
    result: list[str] = []
    previous: str | None = None
    for word in answer.split():
        bare = "".join(plain(word))
        is_supported = (previous, bare) in word_pairs
        if previous is None:
            is_supported = bare in vocabulary
        # Punctuation that stands alone says nothing that could be unsupported.
        result.append(word if is_supported or not bare else MARK + word)
        previous = bare or previous
    return " ".join(result)


def plain(text: str) -> list[str]:
    """Words in lower case, without what is no letter or digit."""
    words = []
    for word in text.lower().split():
        bare = re.sub(r"\W", "", word)
        if bare:
            words.append(bare)
    return words


def weak_order(preference: list[int]) -> list[int] | None:
    """Ranks (1 best) that agree with all six comparisons (0 tie, 1 the first is better, 2 the
    second); None if none do."""
    wins = [0.0] * 4
    for (a, b), result in zip(PAIRS, preference, strict=True):
        wins[a] += WINS_OF_FIRST[result]
        wins[b] += 1.0 - WINS_OF_FIRST[result]
    ranks = [1 + sum(other > own for other in wins) for own in wins]
    # Counting wins gives ranks in any case; they are an order only if they explain each result.
    for (a, b), result in zip(PAIRS, preference, strict=True):
        expected = TIE
        if ranks[a] < ranks[b]:
            expected = FIRST_IS_BETTER
        elif ranks[a] > ranks[b]:
            expected = SECOND_IS_BETTER
        if result != expected:
            return None
    return ranks
