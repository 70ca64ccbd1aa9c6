"""Grade-school arithmetic (GSM8K, Cobbe et al. 2021, arXiv:2110.14168): its files as rows, and the
exact-match reward.

`convert` functions of `data`, the function of `rewards.sources` and the judge of `evaluate`, by
name from the config.
"""

from __future__ import annotations

import re
from typing import Any

ANNOTATION = re.compile(r"<<[^>]*>>")
ANSWER = re.compile(r"####\s*(-?[\d,]*\.?\d+)")


def problem(row: dict[str, Any]) -> list[dict[str, Any]]:
    """A prompt, with its answer for the reward."""
    return [{"prompt": row["question"], "answer": final_answer(row["answer"])}]


def solution(row: dict[str, Any]) -> list[dict[str, Any]]:
    """A demonstration: the human's solution without the calculator's annotations."""
    return [{"prompt": row["question"], "response": ANNOTATION.sub("", row["answer"])}]


def text(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Question and solution as a document."""
    return [{"text": f"{row['question']}\n{ANNOTATION.sub('', row['answer'])}"}]


def exact_match(row: dict[str, Any], response: str, ended: bool) -> float:
    """1 if the number after #### is the answer, else 0."""
    return float(final_answer(response) == row["answer"])


def judge(row: dict[str, Any], response: str, ended: bool) -> dict[str, float]:
    """Whether the answer is right, and whether there is one."""
    right = exact_match(row, response, ended)
    return {"score": right, "right": right, "answered": float(final_answer(response) is not None)}


def final_answer(solution: str) -> str | None:
    """The number after the last ####, without thousands separators and trailing zeros."""
    # The last, since a model may write several before it is done.
    numbers = ANSWER.findall(solution)
    if not numbers:
        return None
    return f"{float(numbers[-1].replace(',', '')):g}"
