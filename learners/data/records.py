"""The forms that rows of data may have, each brought to one: what is wrong with a row is told by its key.

A prompt is a text or a list of messages that ends with the user's. `learners.data.sources` reads rows through these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
Messages = list[dict[str, str]]

CONVERSATION = '[{"role": "user", "content": …}, {"role": "assistant", "content": …}]'


class InvalidRow(ValueError):
    """Says what is wrong with one row: key, and what was expected."""


@dataclass(frozen=True)
class Form:
    """`read` brings a row to its one form or raises InvalidRow; rows alike in the keys `identity` are duplicates."""

    read: Callable[[Row], Row]
    identity: tuple[str, ...]


def as_messages(prompt: str | Messages) -> Messages:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def document(row: Row) -> Row:
    return {**row, "text": _text(row, "text")}


def prompt(row: Row) -> Row:
    """{"prompt": text or messages}; messages may also stand under "messages"."""
    given = row.get("prompt") or row.get("messages")
    if isinstance(given, list):
        return {**row, "prompt": _messages(given, "prompt" if row.get("prompt") else "messages", last="user")}
    return {**row, "prompt": _text(row, "prompt")}


def demonstration(row: Row) -> Row:
    """{"messages": […]}, from itself or from "prompt" and "response"."""
    if row.get("messages") is None and "response" in row:
        reply = {"role": "assistant", "content": _text(row, "response")}
        return {**row, "messages": [*as_messages(prompt(row)["prompt"]), reply]}
    return {**row, "messages": _messages(row.get("messages"), "messages", last="assistant")}


def ranking(row: Row) -> Row:
    """{"prompt", "responses", "ranks", "ended"}, from itself or from a pair, "chosen" better than "rejected".

    The two of a pair are texts or whole conversations that differ in the last message; "prompt" may then be left out.
    """
    if "responses" not in row and "chosen" in row:
        pair = [row["chosen"], row.get("rejected")]
        if isinstance(pair[0], list):
            talks = [
                _messages(talk, key, "assistant")
                for talk, key in zip(pair, ("chosen", "rejected"), strict=True)
            ]
            if talks[0][:-1] != talks[1][:-1]:
                raise InvalidRow(
                    "keys 'chosen' and 'rejected': expected two conversations that differ in the last message"
                )
            row = {**row, "prompt": row.get("prompt") or talks[0][:-1]}
            pair = [talk[-1]["content"] for talk in talks]
        row = {
            **row,
            "responses": [_text({"chosen": pair[0]}, "chosen"), _text({"rejected": pair[1]}, "rejected")],
        }
        row["ranks"] = [1, 2]
    row = prompt({k: v for k, v in row.items() if k != "messages"})
    responses, ranks, ended = row.get("responses"), row.get("ranks"), row.get("ended")
    if (
        not isinstance(responses, list)
        or len(responses) < 2
        or not all(isinstance(r, str) for r in responses)
    ):
        raise InvalidRow("key 'responses': expected a list of at least two texts")
    if (
        not isinstance(ranks, list)
        or len(ranks) != len(responses)
        or not all(type(r) is int and r >= 1 for r in ranks)
    ):
        raise InvalidRow(
            f"key 'ranks': expected {len(responses)} whole numbers from 1 (best), equal for ties"
        )
    if ended and (len(ended) != len(responses) or not all(isinstance(e, bool) for e in ended)):
        raise InvalidRow(f"key 'ended': expected {len(responses)} times true or false")
    return {**row, "ended": ended or [True] * len(responses)}


FORMS = {
    "corpus": Form(document, ("text",)),
    "demonstrations": Form(demonstration, ("messages",)),
    "prompts": Form(prompt, ("prompt",)),
    "heldout": Form(prompt, ("prompt",)),
    "rankings": Form(ranking, ("prompt", "responses", "ranks", "labeler")),
}


def _text(row: Row, key: str) -> str:
    if not isinstance(row.get(key), str) or not row[key].strip():
        raise InvalidRow(f"key '{key}': expected a text that is not empty")
    return row[key]


def _messages(messages: Any, key: str, last: str) -> Messages:
    if not isinstance(messages, list) or not messages:
        raise InvalidRow(f"key '{key}': expected a list like {CONVERSATION}")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
            raise InvalidRow(f"key '{key}[{i}].role': expected system, user or assistant")
        if not isinstance(message.get("content"), str):
            raise InvalidRow(f"key '{key}[{i}].content': expected a text")
    if messages[-1]["role"] != last:
        raise InvalidRow(f"key '{key}': the last message must be the {last}'s")
    return messages
