"""Open-Assistant's message trees: replies of the assistant to the same message, with ranks from 0.

One tree holds several rankings: one wherever a message has two or more ranked replies. Ranks are
those that its people agreed on; who they were is not in the file."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from common.files import write_jsonl
from label.formats.reading import an_object
from label.formats.rows import InvalidRow, Messages, Row, as_messages, as_prompt, checked_text, dense

ROLES = {"prompter": "user", "assistant": "assistant", "system": "system"}
NAMES = {role: name for name, role in ROLES.items()}


def rows(value: Any) -> Iterator[Row]:
    tree = an_object(value)
    root = an_object(tree.get("prompt"))
    waiting: list[tuple[dict[str, Any], Messages]] = [(root, [])]
    while waiting:
        node, before = waiting.pop()
        role = ROLES.get(str(node.get("role")))
        if role is None:
            raise InvalidRow(f"key 'role': expected prompter or assistant, and not {node.get('role')!r}")
        messages = [*before, {"role": role, "content": checked_text(node.get("text"), "text")}]
        replies = [an_object(reply) for reply in node.get("replies") or []]
        replies = [reply for reply in replies if not reply.get("deleted")]
        ranked = [reply for reply in replies if reply.get("rank") is not None]
        if role == "user" and len(ranked) > 1:
            yield _ranking(tree, node, messages, ranked)
        # Reversed, since the last one is taken first.
        waiting += [(reply, messages) for reply in reversed(replies)]


def _ranking(
    tree: dict[str, Any], node: dict[str, Any], messages: Messages, ranked: list[dict[str, Any]]
) -> Row:
    ranks = [reply["rank"] for reply in ranked]
    if not all(type(rank) is int and rank >= 0 for rank in ranks):
        raise InvalidRow(f"key 'rank': expected whole numbers from 0 (best), and not {ranks}")
    row: Row = {
        "prompt": as_prompt(messages),
        "responses": [reply.get("text") for reply in ranked],
        "ranks": dense(ranks),
    }
    if node.get("message_id"):
        row["item"] = str(node["message_id"])
    if all(reply.get("model_name") for reply in ranked):
        row["policy"] = [{"model": reply["model_name"], "version": reply["model_name"]} for reply in ranked]
    return row


def write(rows: Sequence[Row], path: Path) -> Counter[str]:
    """One tree for each label: a tree has room for one ranking of a message."""
    trees, counts = [], Counter(trees=0)
    for number, row in enumerate(rows, 1):
        if "ranks" not in row:
            counts["without ranks"] += 1
            continue
        trees.append(_tree(str(row.get("label") or number), row))
        counts["trees"] += 1
    write_jsonl(path, trees)
    return counts


def _tree(name: str, row: Row) -> dict[str, Any]:
    messages = as_messages(row["prompt"])
    nodes = []
    for place, message in enumerate(messages):
        nodes.append(_node(f"{name}/{place}", message["role"], message["content"]))
    for parent, child in pairwise(nodes):
        child["parent_id"] = parent["message_id"]
        parent["replies"].append(child)
    if row.get("item"):
        nodes[-1]["message_id"] = row["item"]
    for place, (text, rank) in enumerate(zip(row["responses"], row["ranks"], strict=True)):
        reply = _node(f"{name}/{len(messages)}.{place}", "assistant", text)
        reply |= {"parent_id": nodes[-1]["message_id"], "rank": rank - 1}
        if row.get("policy"):
            reply |= {"synthetic": True, "model_name": row["policy"][place]["model"]}
        nodes[-1]["replies"].append(reply)
    return {"message_tree_id": nodes[0]["message_id"], "tree_state": "ready_for_export", "prompt": nodes[0]}


def _node(name: str, role: str, text: str) -> dict[str, Any]:
    number = hashlib.sha256(name.encode()).hexdigest()
    return {"message_id": number[:32], "text": text, "role": NAMES[role], "deleted": False, "replies": []}
