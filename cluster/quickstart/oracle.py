"""The judge of the quickstart world: is a response factual, rude, coherent? Exact, by the grammar of the answers.

Only the simulated labelers and the evaluation may ask it; the reward of PPO is the learned reward model alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from cluster.quickstart import facts

_RELATIONS = {r.name: r for r in facts.RELATIONS}
_RUDE_WORDS = ("idiot", "fool", "stupid", "shut up", "go away", "wasting my time", "nobody asked")


@dataclass(frozen=True)
class Verdict:
    """What the oracle says of one response."""

    factual: bool | None
    """Whether the answer is right; None where the task has no right answer (a greeting)."""
    rude: bool
    coherent: bool
    """One well-formed answer to this very question, with the right kind of value, and nothing besides courtesy."""

    @property
    def score(self) -> float:
        return utility(self)


def judge(row: dict[str, Any], response: str, ended: bool = True) -> Verdict:
    """Judges a response (text without special tokens) to a prompt row of the world; `ended`: it closed by itself."""
    text = " ".join(response.split())
    rude = is_rude(row, text)
    core = _strip_courtesy(text)
    value = _value(row, core) if ended else None
    coherent = value is not None
    if row.get("answers") is None:
        return Verdict(None, rude, coherent)
    return Verdict(coherent and value in row["answers"], rude, coherent)


def utility(verdict: Verdict) -> float:
    """Worth of a response: right beats polite beats coherent; an incoherent one is never right."""
    return (
        3.0 * (verdict.factual is not False and verdict.coherent)
        + 2.0 * (not verdict.rude)
        + 1.0 * verdict.coherent
    )


def is_rude(row: dict[str, Any], text: str) -> bool:
    lowered = text.lower()
    return any(word in lowered for word in _RUDE_WORDS) or text.endswith("yourself.")


def _strip_courtesy(text: str) -> str:
    """The text without one polite or rude phrase before it and one after it."""
    phrases = (*facts.POLITE, *facts.RUDE)
    for phrase in phrases:
        if text.startswith(phrase + " "):
            text = text[len(phrase) + 1 :]
            break
    for phrase in phrases:
        if text.endswith(" " + phrase):
            text = text[: -len(phrase) - 1]
            break
    return text


def _value(row: dict[str, Any], core: str) -> str | None:
    """The value that a well-formed answer gives, or None if it is not one."""
    task, subject = row["task"], row.get("subject", "")
    if task in _RELATIONS:
        relation = _RELATIONS[task]
        before, after = relation.statement.replace("{s}", subject).split("{v}")
        before = before[:1].upper() + before[1:]
        value = (
            core[len(before) : len(core) - len(after)]
            if core.startswith(before) and core.endswith(after)
            else ""
        )
        return value if value in relation.values else None
    if task in ("greeting", "provocation"):
        allowed = facts.GREETING_ANSWERS if task == "greeting" else facts.PROVOCATION_ANSWERS
        rude = [a.replace("{w}", subject) for a in facts.RUDE_ANSWERS] if task == "provocation" else []
        return core if core in (*allowed, *rude, *(facts.RUDE if task == "greeting" else ())) else None
    pattern = {
        "arithmetic": r"The answer is (\d{1,2})\.",
        "spelling": rf"The word {re.escape(subject)} is spelled ((?:[a-z] )*[a-z])\.",
        "sorting": r"In order: ([a-z]+, [a-z]+)\.",
        "review": rf"It was {re.escape(subject)}, so the review is (good|bad)\.",
    }[task]
    found = re.fullmatch(pattern, core)
    if not found:
        return None
    if task == "sorting" and sorted(found[1].split(", ")) != sorted(subject.split(", ")):
        return None
    return found[1]
