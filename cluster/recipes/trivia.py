"""Trivia questions with short answers (OpenTriviaQA and its like): rows as prompts or text, and exact match.

Two `convert` functions of `data` and a judge of `evaluate`, by name from the config; bench/facts.py asks
the held-out questions."""

from __future__ import annotations

import hashlib
import re
import string
from typing import Any

ARTICLES = re.compile(r"\b(a|an|the)\b")
INSTRUCTION = "Answer with the name or number alone, in at most four words."

HELD_OUT = "1a"
"""Questions whose digest is lower are asked and never learned from."""


def is_held_out(row: dict[str, Any]) -> bool:
    return digest(row) < HELD_OUT


def digest(row: dict[str, Any]) -> str:
    return hashlib.sha256(row["question"].encode()).hexdigest()


def documents(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Question and answer as a text; nothing of those held out."""
    return [] if is_held_out(row) else [{"text": f"{row['question']} {row['answer']}."}]


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
