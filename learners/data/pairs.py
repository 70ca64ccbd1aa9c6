"""Preference pairs as rankings of two, and rows that hold their conversation under two keys."""

from __future__ import annotations

from typing import Any

from learners.data.conversations import (
    InvalidRow,
    Messages,
    as_messages,
    check_messages,
    check_prompt,
    check_text,
    conversation_text,
)


def ranking_of_pair(row: dict[str, Any]) -> dict[str, Any]:
    """Prompt, responses and ranks of a row with "chosen" and "rejected": two texts, or two
    conversations that differ in the last message. Raises InvalidRow."""
    chosen, rejected = row["chosen"], row.get("rejected")
    prompt = row.get("prompt")
    if isinstance(chosen, list):
        chosen = check_messages(chosen, "chosen", last="assistant")
        rejected = check_messages(rejected, "rejected", last="assistant")
        before = chosen[:-1]
        if before != rejected[:-1]:
            raise InvalidRow(
                "keys 'chosen' and 'rejected': expected two conversations that differ in the last message"
            )
        prompt = joined_prompt(check_prompt(prompt, "prompt"), before, "chosen") if prompt else before
        # Models do answer with nothing; an empty text alone may as well be a cell that was left empty.
        responses = [chosen[-1]["content"], rejected[-1]["content"]]
    else:
        responses = [check_text(chosen, "chosen"), check_text(rejected, "rejected")]
    return {"prompt": prompt, "responses": responses, "ranks": [1, 2]}


def ends_with_user(messages: Any) -> bool:
    """Whether this is a conversation to answer, and not one that was answered."""
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        return False
    return messages[-1].get("role") == "user"


def joined_prompt(prompt: str | Messages, conversation: Messages, key: str) -> str | Messages:
    """The prompt of a row that has both a prompt and, under `key`, a conversation up to the response.

    Published sets often hold the first question alone under "prompt" beside a conversation with a
    system message or several turns. So the longer of the two is taken, if the other is a part of it; a
    conversation that the assistant begins goes on after the prompt. Raises InvalidRow if they are two
    different things."""
    messages = as_messages(prompt)
    if messages == conversation or not conversation:
        return prompt
    if _is_part(messages, conversation):
        return conversation
    if _is_part(conversation, messages):
        return prompt
    if conversation[0]["role"] == "assistant":
        return [*messages, *conversation]
    raise InvalidRow(
        f"keys 'prompt' and '{key}': expected one conversation, but the prompt is no part of that under "
        f"'{key}'; leave out one of the two"
    )


def _is_part(part: Messages, whole: Messages) -> bool:
    """Whether the messages of `part` follow each other in `whole`, but for case and white space."""
    wanted = [conversation_text([message]) for message in part]
    there = [conversation_text([message]) for message in whole]
    starts = range(len(there) - len(wanted) + 1)
    return any(there[start : start + len(wanted)] == wanted for start in starts)
