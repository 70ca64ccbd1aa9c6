"""Forms of two answers to a question, one of them preferred."""

from __future__ import annotations

from typing import Any

from learners.data.conversations import InvalidRow, Messages
from learners.data.forms.turns import number_of, prompt_of, ranks_of, text_of, transcript

Row = dict[str, Any]


def hh(row: Row) -> list[Row]:
    """Anthropic's hh-rlhf: "chosen" and "rejected" are whole transcripts with a common beginning."""
    if "chosen" not in row and "transcript" in row:
        raise InvalidRow(
            "a transcript of red teaming (red-team-attempts) has no second answer to compare; take the sets "
            "with chosen and rejected"
        )
    chosen, rejected = transcript(row.get("chosen"), "chosen"), transcript(row.get("rejected"), "rejected")
    if chosen[:-1] != rejected[:-1] or {chosen[-1]["role"], rejected[-1]["role"]} != {"assistant"}:
        raise InvalidRow(
            "keys 'chosen' and 'rejected': expected two transcripts that differ in the assistant's last turn"
        )
    return [_pair(chosen[:-1], chosen[-1]["content"], rejected[-1]["content"])]


def webgpt(row: Row) -> list[Row]:
    """OpenAI's webgpt_comparisons: "question", "answer_0", "answer_1" and scores from -1 to 1 that are
    each other's negative; 0 is a tie. Transcripts as `hh` has them are taken too."""
    if "answer_0" not in row:
        return hh(row)
    question = row.get("question")
    if isinstance(question, dict):
        question = question.get("full_text")
    answers = [text_of(row.get(f"answer_{i}"), f"answer_{i}") for i in (0, 1)]
    scores = [number_of(row.get(f"score_{i}")) for i in (0, 1)]
    if None in scores:
        raise InvalidRow(f"keys 'score_0' and 'score_1': expected two numbers, found {scores}")
    ranks = ranks_of([float(score or 0.0) for score in scores])
    return [{"prompt": text_of(question, "question.full_text"), "responses": answers, "ranks": ranks}]


def shp(row: Row) -> list[Row]:
    """Stanford Human Preferences: two comments on a post; "labels" is 1 where the first has more votes."""
    if row.get("labels") not in (0, 1):
        raise InvalidRow(f"key 'labels': expected 0 or 1, found {row.get('labels')!r}")
    first, second = (text_of(row.get(f"human_ref_{name}"), f"human_ref_{name}") for name in "AB")
    ranks = [1, 2] if row["labels"] == 1 else [2, 1]
    prompt = text_of(row.get("history"), "history")
    return [{"prompt": prompt, "responses": [first, second], "ranks": ranks}]


def _pair(before: Messages, chosen: str, rejected: str) -> Row:
    return {"prompt": prompt_of(before), "responses": [chosen, rejected], "ranks": [1, 2]}
