"""What the forms have in common: who speaks, texts in parts, transcripts in one string, ranks of scores.

Tolerant of what published files hold (names of speakers, text in parts, a greeting before the first
question, a speaker twice in a row), strict about what cannot be right. All raise InvalidRow."""

from __future__ import annotations

import math
import re
from typing import Any

from learners.data.conversations import InvalidRow, Messages

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "model": "assistant",
    "chatbot": "assistant",
}
MARK = re.compile(r"(?:^|\n\n)(?:## ?)?(Human|Assistant): ?")
LISTS = ("messages", "conversations", "conversation", "items")


def text_of(value: Any, key: str) -> str:
    """A text, or the parts of one: texts, or {"type": "text", "text": …}."""
    if isinstance(value, list):
        texts = []
        for i, part in enumerate(value):
            if isinstance(part, dict) and part.get("type", "text") != "text":
                raise InvalidRow(f"key '{key}[{i}]': expected a part of type text, found {part['type']!r}")
            texts.append(text_of(part.get("text") if isinstance(part, dict) else part, f"{key}[{i}]"))
        return "".join(texts)
    if not isinstance(value, str):
        raise InvalidRow(f"key '{key}': expected a text or a list of parts with texts")
    return value


def messages_of(turns: Any, key: str) -> Messages:
    """Turns as {"role", "content"}, however the file names them ("from" and "value", "role" and "text")."""
    if not isinstance(turns, list) or not turns:
        raise InvalidRow(f"key '{key}': expected a list of turns")
    messages: Messages = []
    for i, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise InvalidRow(f"key '{key}[{i}]': expected a turn with its speaker and text")
        name = turn.get("from") or turn.get("role") or turn.get("speaker")
        role = ROLES.get(str(name).lower())
        if role is None:
            raise InvalidRow(f"key '{key}[{i}]': {name!r} speaks; expected one of {', '.join(ROLES)}")
        names = [name for name in ("value", "content", "text") if turn.get(name) is not None]
        if not names:
            raise InvalidRow(
                f"key '{key}[{i}]': the turn has no text; expected it under value, content or text"
            )
        _say(messages, role, text_of(turn[names[0]], f"{key}[{i}].{names[0]}"))
    return messages


def first_list(row: dict[str, Any], key: str | None = None) -> tuple[str, Any]:
    """(key, turns) of the conversation of a row."""
    for name in (key,) if key else LISTS:
        if row.get(name):
            return name, row[name]
    raise InvalidRow(f"no key of {', '.join(LISTS)} has turns; the row has the keys {', '.join(row)}")


def _say(messages: Messages, role: str, text: str) -> None:
    """Adds what somebody says; twice in a row is one turn."""
    if messages and messages[-1]["role"] == role:
        messages[-1]["content"] += "\n\n" + text
    else:
        messages.append({"role": role, "content": text})


def transcript(value: Any, key: str) -> Messages:
    """Turns of a transcript in one string: "\\n\\nHuman: …\\n\\nAssistant: …"."""
    text = text_of(value, key)
    pieces = MARK.split(text)
    if pieces[0].strip() or len(pieces) < 3:
        raise InvalidRow(f"key '{key}': expected a transcript that begins with 'Human:'")
    messages: Messages = []
    for role, words in zip(pieces[1::2], pieces[2::2], strict=True):
        _say(messages, ROLES[role.lower()], words.strip())
    return messages


def prompt_of(messages: Messages) -> str | Messages:
    """A question alone as its text; more of a conversation as messages."""
    if len(messages) == 1 and messages[0]["role"] == "user":
        return str(messages[0]["content"])
    return messages


def question(messages: Messages) -> str | Messages:
    """The conversation up to its last question. Raises InvalidRow where nobody asks anything."""
    end = len(messages)
    while end and messages[end - 1]["role"] != "user":
        end -= 1
    if not end:
        raise InvalidRow("the conversation has no turn of the user")
    return prompt_of(messages[:end])


def without_greeting(messages: Messages) -> Messages:
    """The conversation from the first question on: what the assistant says before answers nothing."""
    start = 0
    while start < len(messages) and messages[start]["role"] == "assistant":
        start += 1
    return messages[start:]


def answered(messages: Messages) -> Messages:
    """The conversation up to the assistant's last turn; questions after it have no answer."""
    end = len(messages)
    while end and messages[end - 1]["role"] != "assistant":
        end -= 1
    return messages[:end]


def number_of(value: Any) -> float | None:
    """A finite number, also where the file has it as text; None for anything else ("N/A")."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def ranks_of(scores: list[float]) -> list[int]:
    """Ranks of scores, 1 for the highest, equal ones tied."""
    order = sorted(set(scores), reverse=True)
    return [order.index(score) + 1 for score in scores]
