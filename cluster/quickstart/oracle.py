"""The oracle of the quickstart: is a response factual, rude, coherent? It is exact, because answers
follow a grammar.

Only the simulated labelers and the evaluation use it. The reward of PPO is the learned reward model
alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cluster.quickstart.grammar import GRAMMAR, SmallTalk
from common.errors import UserError


@dataclass(frozen=True)
class Verdict:
    """What the oracle says of one response."""

    factual: bool | None
    """Whether the answer is right; None where the task has no right answer (a greeting)."""
    rude: bool
    coherent: bool
    """One well-formed answer to this very question, with the right kind of value, and nothing
    else but remarks before and after it."""

    @property
    def score(self) -> float:
        return utility(self)


def judge(row: dict[str, Any], response: str, ended: bool = True) -> Verdict:
    """Judges a response (text without special tokens) to a prompt row of the quickstart. `ended`
    says whether the response ended by itself; one that was cut off is incoherent. Raises UserError
    for a row that is not the quickstart's."""
    if "task" not in row:
        raise UserError(
            f"the oracle and the simulated labelers know the quickstart's prompts only, and not "
            f"{row.get('prompt')!r}; set evaluate.judge to a function of your own or to null, and give "
            "data.rankings instead of stage collect"
        )
    # Models often add a space or a newline; that alone makes no response incoherent.
    text = " ".join(response.split())
    rude = GRAMMAR.is_rude(text)
    answer = _parse_answer(row, GRAMMAR.without_remarks(text))
    coherent = ended and answer is not None
    if row.get("answers") is None:
        return Verdict(None, rude, coherent)
    return Verdict(coherent and answer in row["answers"], rude, coherent)


def utility(verdict: Verdict) -> float:
    """Worth of a response, from 0 to `BEST_UTILITY`: being right counts more than being polite, and
    that more than being coherent. An incoherent response is never right."""
    utility = 0.0
    # Where there is no right answer, every coherent response counts as right.
    if verdict.coherent and verdict.factual is not False:
        utility += 3.0
    if not verdict.rude:
        utility += 2.0
    if verdict.coherent:
        utility += 1.0
    return utility


BEST_UTILITY = utility(Verdict(factual=True, rude=False, coherent=True))


def _parse_answer(row: dict[str, Any], text: str) -> str | None:
    """The value that a well-formed answer states, or the reply itself where there is no right
    answer; None if the text is not well-formed."""
    subject, task = row.get("subject", ""), GRAMMAR.task(row["task"])
    if not isinstance(task, SmallTalk):
        return task.parse(subject, text)
    if task.is_reply(subject, text):
        return text
    return None
