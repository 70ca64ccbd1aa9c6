"""Battles of two models, in the columns of Chatbot Arena's published conversations.

question_id, model_a, model_b, winner (model_a, model_b, tie, tie (bothbad)), judge,
conversation_a, conversation_b ([{"role", "content"}, …]), turn, anony, tstamp"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common.files import write_jsonl
from label.formats.pairs import pairs_of
from label.formats.reading import Entries, an_object, json_list
from label.formats.rows import InvalidRow, Row, as_messages, as_prompt

RANKS = {"model_a": [1, 2], "model_b": [2, 1], "tie": [1, 1], "tie (bothbad)": [1, 1]}


def entries(path: Path) -> Entries:
    return json_list(path, "battle")


def rows(value: Any) -> Iterator[Row]:
    battle = an_object(value)
    winner = battle.get("winner")
    if winner not in RANKS:
        raise InvalidRow(f"key 'winner': expected {', '.join(RANKS)}; got {winner!r}")
    prompts, responses, policy = [], [], []
    for side in "ab":
        messages = battle.get(f"conversation_{side}")
        if not isinstance(messages, list) or len(messages) < 2 or messages[-1].get("role") != "assistant":
            raise InvalidRow(f"key 'conversation_{side}': expected messages, the last of the assistant")
        turns = [{"role": one.get("role"), "content": one.get("content")} for one in messages]
        prompts.append(turns[:-1])
        responses.append(turns[-1]["content"])
        model = battle.get(f"model_{side}")
        if not isinstance(model, str):
            raise InvalidRow(f"key 'model_{side}': expected the name of a model")
        policy.append({"model": model, "version": model})
    if prompts[0] != prompts[1]:
        # After the first turn the two models answer different conversations.
        raise InvalidRow("keys 'conversation_a' and '_b': expected the same messages before the last")
    row: Row = {"prompt": as_prompt(prompts[0]), "responses": responses, "ranks": RANKS[winner]}
    row["policy"] = policy
    if winner == "tie (bothbad)":
        row["all_bad"] = True
    for source, key in (("question_id", "item"), ("judge", "labeler"), ("tstamp", "time")):
        if battle.get(source) is not None:
            row[key] = battle[source]
    return iter([row])


def write(rows: Sequence[Row], path: Path) -> Counter[str]:
    """Every pair of responses of two policies is a battle; models are named by model and
    version."""
    battles, counts = [], Counter(battles=0)
    for number, row in enumerate(rows, 1):
        if "ranks" not in row or not row.get("policy"):
            counts["without ranks or policies"] += 1
            continue
        names = [_name(policy) for policy in row["policy"]]
        for pair in pairs_of(row):
            # In the order of the responses, so that the winner is on either side.
            first, second = sorted((pair.better, pair.worse))
            if names[first] == names[second]:
                counts["same policy"] += 1
                continue
            battles.append(
                {
                    "question_id": str(row.get("item") or number),
                    "model_a": names[first],
                    "model_b": names[second],
                    "winner": _winner(row, pair.margin, pair.better == first),
                    "judge": row.get("labeler"),
                    "conversation_a": _conversation(row, first),
                    "conversation_b": _conversation(row, second),
                    "turn": sum(message["role"] == "user" for message in as_messages(row["prompt"])),
                    "anony": True,
                    "tstamp": row.get("time"),
                }
            )
            counts["battles"] += 1
    write_jsonl(path, battles)
    return counts


def _name(policy: dict[str, Any]) -> str:
    model, version = str(policy["model"]), str(policy["version"])
    return model if model == version else f"{model} {version}"


def _winner(row: Row, margin: int, is_first: bool) -> str:
    if margin == 0:
        return "tie (bothbad)" if row.get("all_bad") else "tie"
    return "model_a" if is_first else "model_b"


def _conversation(row: Row, response: int) -> list[dict[str, Any]]:
    return [*as_messages(row["prompt"]), {"role": "assistant", "content": row["responses"][response]}]
