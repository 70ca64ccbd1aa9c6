"""Label rows: their checks, their identity, and who labeled."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]
Messages = list[dict[str, Any]]

IDENTITY = ("prompt", "responses", "ranks", "likert", "flags", "all_bad", "strength", "labeler")
"""What two labels have in common that are one and the same, imported twice."""
OWN_PSEUDONYM = re.compile(r"(labeler|gone|imported)-[0-9a-f]{8,}")
SURROGATE = re.compile(r"[\ud800-\udfff]")


class InvalidRow(ValueError):
    """One row is wrong. The message is a sentence that names the key and what was expected."""


def checked(row: Mapping[str, Any]) -> Row:
    """The row, with ranks without gaps. Raises InvalidRow."""
    checked_prompt(row.get("prompt"))
    responses = row.get("responses")
    if not isinstance(responses, list) or len(responses) < 2:
        raise InvalidRow("key 'responses': expected a list of at least two texts")
    for number, response in enumerate(responses):
        checked_text(response, f"responses[{number}]")
    if row.get("ranks") is None:
        return {key: value for key, value in row.items() if key != "ranks"}
    ranks = row["ranks"]
    if not isinstance(ranks, list) or len(ranks) != len(responses):
        raise InvalidRow(f"key 'ranks': expected {len(responses)} whole numbers from 1 (best)")
    if not all(type(rank) is int and rank >= 1 for rank in ranks):
        raise InvalidRow(f"key 'ranks': expected whole numbers from 1 (best), and not {ranks}")
    _check_likert(row.get("likert"), len(responses))
    return {**row, "ranks": dense(ranks)}


def checked_text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise InvalidRow(f"key '{key}': expected a text")
    if "\0" in value:
        raise InvalidRow(f"key '{key}': has a NUL character, which no text has")
    return value


def checked_prompt(value: Any) -> str | Messages:
    """A text, or messages of which the last is the user's."""
    if isinstance(value, str) and value.strip():
        return checked_text(value, "prompt")
    if not isinstance(value, list) or not value:
        raise InvalidRow("key 'prompt': expected a text that is not empty, or a list of messages")
    for number, message in enumerate(value):
        if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
            raise InvalidRow(f"key 'prompt[{number}].role': expected system, user or assistant")
        checked_text(message.get("content"), f"prompt[{number}].content")
    if value[-1]["role"] != "user":
        raise InvalidRow("key 'prompt': the last message must be the user's")
    return value


def _check_likert(likert: Any, count: int) -> None:
    if likert is None:
        return
    if not isinstance(likert, list) or len(likert) != count:
        raise InvalidRow(f"key 'likert': expected {count} ratings, null where there is none")
    for rating in likert:
        if rating is not None and (type(rating) is not int or not 1 <= rating <= 7):
            raise InvalidRow(f"key 'likert': expected whole numbers from 1 to 7, and not {rating!r}")


def dense(ranks: Sequence[float]) -> list[int]:
    """Ranks from 1 without gaps; equal values stay equal."""
    places = {value: place for place, value in enumerate(sorted(set(ranks)), 1)}
    return [places[rank] for rank in ranks]


def as_messages(prompt: str | Messages) -> Messages:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return prompt


def as_prompt(messages: Messages) -> str | Messages:
    """A single message of the user as a text, which is the shorter form of the same."""
    if len(messages) == 1 and set(messages[0]) == {"role", "content"} and messages[0]["role"] == "user":
        return str(messages[0]["content"])
    return messages


def content_hash(row: Mapping[str, Any]) -> str:
    """Equal for a label that is imported a second time, from whichever file and format."""
    content: dict[str, Any] = {}
    for key in IDENTITY:
        # Left out and empty mean the same.
        if row.get(key):
            content[key] = row[key]
    content["prompt"] = as_messages(row["prompt"])
    if not any(content.get("flags", ())):
        content.pop("flags", None)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def pseudonym(name: str, salt: str = "") -> str:
    """Stands for a person of another program. What an export of this program calls a person stays.
    With a salt that is kept secret nobody can try names until one fits."""
    if OWN_PSEUDONYM.fullmatch(name):
        return name
    return f"imported-{hashlib.sha256(f'{salt}|{name}'.encode()).hexdigest()[:12]}"


def without_surrogates(value: Any) -> tuple[Any, int]:
    """The value with U+FFFD for each half of a surrogate pair, which no text can hold, and how many
    there were."""
    if isinstance(value, str):
        return SURROGATE.subn("�", value)
    if isinstance(value, list):
        parts = [without_surrogates(part) for part in value]
        return [part for part, _ in parts], sum(count for _, count in parts)
    if isinstance(value, dict):
        replaced, total = {}, 0
        for key, part in value.items():
            key, in_key = SURROGATE.subn("�", key)
            replaced[key], count = without_surrogates(part)
            total += in_key + count
        return replaced, total
    return value, 0
