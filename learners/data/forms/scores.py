"""Forms of several answers with scores, ranks or a choice."""

from __future__ import annotations

from typing import Any

from learners.data.conversations import InvalidRow, Messages
from learners.data.forms.turns import messages_of, number_of, prompt_of, ranks_of, text_of, transcript

Row = dict[str, Any]


def ultrafeedback(row: Row) -> list[Row]:
    """UltraFeedback: "instruction" and "completions" with "overall_score", or with ratings by several
    aspects, whose mean decides; also its pairs, "chosen" and "rejected" as messages."""
    if "completions" not in row and "chosen" in row:
        return [pair_of_messages(row)]
    completions = _dicts(row.get("completions"), "completions")
    scored = []
    for i, completion in enumerate(completions):
        score = _score(completion)
        # A completion without any rating says nothing; the others still compare.
        if score is not None:
            scored.append(
                (text_of(completion.get("response"), f"completions[{i}].response"), score, completion)
            )
    if len(scored) < 2:
        return []
    return [
        {
            "prompt": text_of(row.get("instruction"), "instruction"),
            "responses": [text for text, _, _ in scored],
            "ranks": ranks_of([score for _, score, _ in scored]),
            "policy": [_policy(completion.get("model")) for _, _, completion in scored],
        }
    ]


def _score(completion: Row) -> float | None:
    ratings = []
    for aspect in (completion.get("annotations") or {}).values():
        ratings.append(number_of(aspect.get("Rating")) if isinstance(aspect, dict) else None)
    known = [rating for rating in ratings if rating is not None]
    if known:
        # Not overall_score, which the published file has ten times too high in some rows (10.0 for 1).
        return sum(known) / len(known)
    return number_of(completion.get("overall_score"))


def pair_of_messages(row: Row) -> Row:
    """Two conversations that differ in the last turn, whatever the roles are called."""
    chosen, rejected = messages_of(row.get("chosen"), "chosen"), messages_of(row.get("rejected"), "rejected")
    pair: Row = {"chosen": chosen, "rejected": rejected}
    if row.get("prompt"):
        pair["prompt"] = row["prompt"]
    return pair


def nectar(row: Row) -> list[Row]:
    """Nectar: "prompt" as a transcript that ends with "Assistant:", "answers" with ranks from 1."""
    answers = _dicts(row.get("answers"), "answers")
    ranks = [number_of(answer.get("rank")) for answer in answers]
    if len(answers) < 2 or None in ranks:
        raise InvalidRow(f"key 'answers': expected at least two, each with a rank, found ranks {ranks}")
    before = transcript(row.get("prompt"), "prompt")
    if before[-1] == {"role": "assistant", "content": ""}:
        before = before[:-1]
    return [
        {
            "prompt": prompt_of(before),
            "responses": [
                text_of(one.get("answer"), f"answers[{i}].answer") for i, one in enumerate(answers)
            ],
            "ranks": ranks_of([-float(rank or 0.0) for rank in ranks]),
            "policy": [_policy(answer.get("model")) for answer in answers],
        }
    ]


def openai_summarize(row: Row) -> list[Row]:
    """OpenAI's summarize_from_feedback, set "comparisons": "info" with the post, two "summaries" and the
    "choice" of a "worker"."""
    if "summaries" not in row and "summary" in row:
        raise InvalidRow(
            "a row of the set axis rates one summary and compares none; take the set comparisons instead"
        )
    info, summaries = row.get("info") or {}, _dicts(row.get("summaries"), "summaries")
    choice = row.get("choice")
    if type(choice) is not int or not 0 <= choice < len(summaries) or len(summaries) < 2:
        raise InvalidRow(f"key 'choice': expected the number of one of the summaries, found {choice!r}")
    post = info.get("post") or info.get("article")
    prompt = f"Summarize the following text.\n\n{text_of(post, 'info.post')}\n\nTL;DR:"
    ranking: Row = {
        "prompt": prompt,
        "responses": [text_of(one.get("text"), f"summaries[{i}].text") for i, one in enumerate(summaries)],
        "ranks": [1 if i == choice else 2 for i in range(len(summaries))],
        "policy": [_policy(summary.get("policy")) for summary in summaries],
    }
    if row.get("worker"):
        ranking["labeler"] = str(row["worker"])
    return [ranking]


def prism(row: Row) -> list[Row]:
    """PRISM's conversations: in every turn several models answer, a person scores the answers, and the
    chosen one goes on."""
    history = _dicts(row.get("conversation_history"), "conversation_history")
    rankings: list[Row] = []
    before: Messages = []
    turns = sorted({turn.get("turn") for turn in history}, key=lambda number: number or 0)
    for number in turns:
        said = [turn for turn in history if turn.get("turn") == number]
        asked = [turn for turn in said if turn.get("role") == "user"]
        answers = [turn for turn in said if turn.get("role") == "model"]
        if len(asked) != 1:
            raise InvalidRow(f"key 'conversation_history': turn {number} has {len(asked)} questions, not one")
        before = [*before, {"role": "user", "content": text_of(asked[0].get("content"), "content")}]
        scores = [number_of(answer.get("score")) for answer in answers]
        if len(answers) > 1 and None not in scores:
            ranking: Row = {
                "prompt": prompt_of(before),
                "responses": [text_of(answer.get("content"), "content") for answer in answers],
                "ranks": ranks_of([float(score or 0.0) for score in scores]),
                "policy": [_policy(answer.get("model_name")) for answer in answers],
            }
            if row.get("user_id"):
                ranking["labeler"] = str(row["user_id"])
            rankings.append(ranking)
        chosen = [answer for answer in answers if answer.get("if_chosen")]
        if len(chosen) != 1:
            break  # nobody knows what the next turn follows
        before = [*before, {"role": "assistant", "content": text_of(chosen[0].get("content"), "content")}]
    return rankings


def _dicts(value: Any, key: str) -> list[Row]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise InvalidRow(f"key '{key}': expected a list of objects")
    return value


def _policy(name: Any) -> dict[str, str]:
    return {"model": str(name or "unknown"), "version": str(name or "unknown")}
