"""Prompts and conversations as rows hold them: their forms, the checks of their values, and texts
to compare them by."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any, Literal

Messages = list[dict[str, Any]]

ROLES = ("system", "user", "assistant", "tool")
CONVERSATION = '[{"role": "user", "content": …}, {"role": "assistant", "content": …}]'


class InvalidRow(ValueError):
    """One row is wrong. The message is a sentence that names the key and what was expected."""


def as_messages(prompt: str | Messages) -> Messages:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return prompt


def readable(prompt: str | Messages) -> str:
    """A prompt as people read it: one message as it is, several as a line each with its role."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return str(prompt[0]["content"])
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def normalized_text(*values: Any) -> str:
    """One text for values that are equal but for case, white space and Unicode form."""
    # As JSON, so that ("a", "b") and ("ab",) differ.
    text = unicodedata.normalize("NFKC", json.dumps(values, ensure_ascii=False))
    # Line breaks are escaped in JSON.
    return re.sub(r"(\\[nrt]|\s)+", "", text).casefold()


def conversation_text(messages: Messages) -> str:
    """`normalized_text` of who said what; other keys of the messages do not count."""
    turns = [(message["role"], message["content"]) for message in messages]
    return normalized_text(turns)


# Checks of values. Each raises InvalidRow with the complete sentence, or returns the value.


def check_text(value: Any, key: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InvalidRow(f"key '{key}': expected a text that is not empty")
    return value


def check_messages(value: Any, key: str, last: Literal["user", "assistant"]) -> Messages:
    """A conversation whose last message has the role `last`."""
    if not isinstance(value, list) or not value:
        raise InvalidRow(f"key '{key}': expected a list like {CONVERSATION}")
    # Extra keys of a message (a name, a date) are let through: the chat template may use them.
    for i, message in enumerate(value):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise InvalidRow(f"key '{key}[{i}].role': expected system, user, assistant or tool")
        if not isinstance(message.get("content"), str):
            raise InvalidRow(f"key '{key}[{i}].content': expected a text")
    if value[-1]["role"] != last:
        raise InvalidRow(f"key '{key}': the last message must be the {last}'s")
    return value


def check_prompt(value: Any, key: str) -> str | Messages:
    """A text, or a conversation that ends with the user's message."""
    if isinstance(value, list):
        return check_messages(value, key, last="user")
    return check_text(value, key)


def are_ranks(values: list[Any], count: int) -> bool:
    # `type` and not isinstance, since for Python true is an int.
    return len(values) == count and all(type(value) is int and 1 <= value < 2**31 for value in values)


def are_flags(values: list[Any], count: int) -> bool:
    return len(values) == count and all(isinstance(value, bool) for value in values)
