"""Open-Assistant's trees: replies to replies, those of the assistant with ranks of people (0 is best)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from learners.data.conversations import InvalidRow, Messages
from learners.data.forms.turns import ROLES, prompt_of, ranks_of, text_of

Row = dict[str, Any]


def rankings(row: Row) -> list[Row]:
    """A ranking wherever a question has two or more replies with ranks, also later in the tree."""
    found: list[Row] = []
    for messages, node in _walk(row):
        replies = [reply for reply in _replies(node) if reply.get("rank") is not None]
        if messages[-1]["role"] != "user" or len(replies) < 2:
            continue
        ranks = [reply["rank"] for reply in replies]
        if not all(type(rank) is int and rank >= 0 for rank in ranks):
            raise InvalidRow(f"key 'rank': expected whole numbers from 0 (best), found {ranks}")
        ranking: Row = {
            "prompt": prompt_of(messages),
            "responses": [text_of(reply.get("text"), "text") for reply in replies],
            "ranks": ranks_of([-float(rank) for rank in ranks]),
        }
        if all(reply.get("model_name") for reply in replies):
            names = [str(reply["model_name"]) for reply in replies]
            ranking["policy"] = [{"model": name, "version": name} for name in names]
        found.append(ranking)
    return found


def demonstrations(row: Row) -> list[Row]:
    """The path of the best replies: at every question the one that people put first."""
    best: Messages = []
    for messages, node in _walk(row, best_only=True):
        if node.get("role") == "assistant":
            best = messages
    return [{"messages": best}] if best else []


def _walk(row: Row, best_only: bool = False) -> Iterator[tuple[Messages, Row]]:
    """(conversation up to a message, the message) for the messages of the tree, parents first."""
    root = row.get("prompt")
    if not isinstance(root, dict):
        flat = "message_id" in row and "parent_id" in row
        what = "one message of the flat form" if flat else "no tree"
        raise InvalidRow(
            f"key 'prompt': {what}; expected a tree with its replies, as in the files named trees"
        )
    waiting: list[tuple[Messages, Row]] = [([], root)]
    while waiting:
        before, node = waiting.pop()
        role = ROLES.get(str(node.get("role")))
        if role is None:
            raise InvalidRow(f"key 'role': {node.get('role')!r} speaks; expected prompter or assistant")
        messages = [*before, {"role": role, "content": text_of(node.get("text"), "text")}]
        yield messages, node
        replies = _replies(node)
        if best_only and replies:
            replies = [min(replies, key=_place)]
        waiting += [(messages, reply) for reply in reversed(replies)]


def _replies(node: Row) -> list[Row]:
    replies = node.get("replies") or []
    if not isinstance(replies, list) or not all(isinstance(reply, dict) for reply in replies):
        raise InvalidRow("key 'replies': expected a list of messages")
    return [reply for reply in replies if not reply.get("deleted")]


def _place(reply: Row) -> float:
    """Where people put a reply; without a rank behind all that have one."""
    rank = reply.get("rank")
    return float(rank) if type(rank) is int else float("inf")
