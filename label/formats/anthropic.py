"""Pairs as Anthropic published them (hh-rlhf): two transcripts that differ in the last answer.

    {"chosen": "\\n\\nHuman: …\\n\\nAssistant: …", "rejected": "\\n\\nHuman: …\\n\\nAssistant: …"}

Ties and system messages have no place in it, nor have texts with one of the two marks in them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common.files import write_jsonl
from label.formats.pairs import pairs_of
from label.formats.reading import an_object
from label.formats.rows import InvalidRow, Messages, Row, as_messages, as_prompt, checked_text

MARK = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
NAMES = {role: name for name, role in ROLES.items()}


def rows(value: Any) -> Iterator[Row]:
    pair = an_object(value)
    chosen = _messages(checked_text(pair.get("chosen"), "chosen"), "chosen")
    rejected = _messages(checked_text(pair.get("rejected"), "rejected"), "rejected")
    if chosen[:-1] != rejected[:-1]:
        raise InvalidRow("keys 'chosen' and 'rejected': expected transcripts that differ in the last answer")
    responses = [chosen[-1]["content"], rejected[-1]["content"]]
    yield {"prompt": as_prompt(chosen[:-1]), "responses": responses, "ranks": [1, 2]}


def _messages(text: str, key: str) -> Messages:
    before, *parts = MARK.split(text)
    if before.strip() or not parts:
        raise InvalidRow(f"key '{key}': expected it to begin with two line breaks and 'Human:'")
    messages = []
    for name, content in zip(parts[::2], parts[1::2], strict=True):
        messages.append({"role": ROLES[name], "content": content.removeprefix(" ")})
    if messages[-1]["role"] != "assistant" or len(messages) < 2 or messages[-2]["role"] != "user":
        raise InvalidRow(f"key '{key}': expected a question and, last, the Assistant's answer")
    return messages


def write(rows: Sequence[Row], path: Path) -> Counter[str]:
    counts, pairs = Counter(pairs=0), []
    for row in rows:
        if "ranks" not in row:
            counts["without ranks"] += 1
            continue
        messages = as_messages(row["prompt"])
        texts = [message["content"] for message in messages] + row["responses"]
        if any(message["role"] == "system" for message in messages) or any(map(MARK.search, texts)):
            counts["not representable"] += 1
            continue
        before = "".join(_turn(message["role"], message["content"]) for message in messages)
        for pair in pairs_of(row):
            if pair.margin == 0:
                counts["ties"] += 1
                continue
            chosen, rejected = row["responses"][pair.better], row["responses"][pair.worse]
            pairs.append(
                {
                    "chosen": before + _turn("assistant", chosen),
                    "rejected": before + _turn("assistant", rejected),
                }
            )
            counts["pairs"] += 1
    write_jsonl(path, pairs)
    return counts


def _turn(role: str, content: str) -> str:
    return f"\n\n{NAMES[role]}: {content}"
