"""Trivia questions with short answers (OpenTriviaQA and its like): rows as prompts, and exact match.

A `convert` function of `data` and a judge of `evaluate`, by name from the config; bench/facts.py uses
both."""

from __future__ import annotations

import re
import string
from typing import Any

ARTICLES = re.compile(r"\b(a|an|the)\b")
INSTRUCTION = "Answer with the name or number alone, in at most four words."


def question(row: dict[str, Any]) -> list[dict[str, Any]]:
    """A prompt, with its answer and the options for the judge."""
    return [{**row, "prompt": f"{INSTRUCTION}\n\n{row['question']}"}]


def normalized(text: str) -> str:
    """Lower case, without punctuation, articles and extra white space, as SQuAD compares answers (Rajpurkar
    et al. 2016, arXiv:1606.05250)."""
    plain = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(ARTICLES.sub(" ", plain).split())


def judge(row: dict[str, Any], response: str, ended: bool) -> dict[str, float]:
    """Whether the response is the answer, and whether the answer is a part of it."""
    given, expected = normalized(response), normalized(row["answer"])
    exact = float(given == expected)
    return {"score": exact, "exact": exact, "contains": float(f" {expected} " in f" {given} ")}
