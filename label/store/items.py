"""Batches of items: what is to be labelled, by how many people."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from common.errors import UserError
from common.files import to_json
from label.errors import BadInput
from label.store.database import Database, now_ms, record_event
from label.store.tables import batch, gold, item, response
from label.submission import check_text
from label.vocabulary import KINDS

CHUNK = 500
"""Rows of one transaction, so that people go on labelling during an import."""
NO_CHARACTER = re.compile("[\0\ud800-\udfff]")
NO_LIMIT = 1_000_000_000
"""Quota of items that everybody may label: gold and calibration items."""
SHARED = ("gold", "calibration", "screening")
"""Purposes of such items."""


def new_id() -> str:
    return secrets.token_hex(8)


@dataclass
class Added:
    """What an import did, in items."""

    added: int = 0
    known: int = 0
    """There already, with the same content."""
    leaks: int = 0
    """Of A/B batches: a response names its model or version, so the item is void."""
    replaced: int = 0
    """Characters that were none (half of a surrogate pair, NUL) and became U+FFFD."""


@dataclass(frozen=True)
class BatchSpec:
    """A batch as it is asked for. `quota` counts labels of different people for each item."""

    name: str
    kind: str
    quota: int = 1
    purpose: str = "train"
    round: int = 0
    priority: int = 0


def open_batch(connection: Connection, spec: BatchSpec, person: str | None = None) -> str:
    """The id of the batch with this name, which is made if there is none. Raises BadInput if it has another
    kind or purpose."""
    if spec.kind not in KINDS:
        raise BadInput("kind", f"unknown kind {spec.kind!r}; there are {', '.join(KINDS)}")
    row = connection.execute(sa.select(batch).where(batch.c.name == spec.name)).first()
    if row is None:
        values = {"id": new_id(), "state": "open", "created": now_ms(), **vars(spec)}
        connection.execute(batch.insert().values(values))
        record_event(connection, "batch", person, values["id"], name=spec.name)
        return str(values["id"])
    if (row.kind, row.purpose) != (spec.kind, spec.purpose):
        raise BadInput("batch", f"{spec.name} is there as {row.kind}/{row.purpose}; choose another name")
    return str(row.id)


def add_items(database: Database, spec: BatchSpec, rows: Iterable[Any], person: str | None = None) -> Added:
    """Adds one item for each row, `CHUNK` in a transaction; rows that are there already are counted only.

    A row: {"prompt", "responses", and as known "ended", "policy", "decoding", "reward", "row", "gold"}.
    Raises BadInput that names the row, after what stands before its chunk was added.
    """
    with database.write() as connection:
        batch_id = open_batch(connection, spec, person)
    added, start = Added(), 1
    for chunk in _chunks(rows):
        contents = [
            read_item(row, spec.kind, f"row {number}", added) for number, row in enumerate(chunk, start)
        ]
        with database.write() as connection:
            _insert_chunk(connection, spec, batch_id, contents, person, added)
        start += len(chunk)
    return added


def _chunks(rows: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk


def read_item(row: Any, kind: str, where: str, added: Added) -> dict[str, Any]:
    """The checked content of one row. Raises BadInput."""
    if not isinstance(row, dict):
        raise BadInput(where, "expected a JSON object")
    responses = row.get("responses", [])
    if not isinstance(responses, list) or not all(isinstance(text, str) for text in responses):
        raise BadInput(f"{where}.responses", "expected a list of texts")
    needed = {"rank": "at least two", "pair": "two"}.get(kind)
    if (kind == "rank" and not 2 <= len(responses) <= 16) or (kind == "pair" and len(responses) != 2):
        raise BadInput(f"{where}.responses", f"expected {needed} responses, got {len(responses)}")
    content = {
        "prompt": _clean_prompt(row.get("prompt"), f"{where}.prompt", added),
        "responses": [_clean(text, f"{where}.responses", added) for text in responses],
        "row": row.get("row"),
        "gold": row.get("gold"),
    }
    for key, default in (("ended", True), ("policy", None), ("decoding", None), ("reward", None)):
        values = row.get(key) or [default] * len(responses)
        if not isinstance(values, list) or len(values) != len(responses):
            raise BadInput(f"{where}.{key}", f"expected {len(responses)} entries, one for each response")
        content[key] = values
    if content["gold"] is not None:
        _check_gold(content["gold"], kind, len(responses), f"{where}.gold")
    return content


def _check_gold(answer: Any, kind: str, count: int, where: str) -> None:
    ranks = answer.get("ranks") if isinstance(answer, dict) else None
    if kind == "demonstrate" or not isinstance(ranks, list) or len(ranks) != count:
        raise BadInput(where, f'expected {{"ranks": {count} whole numbers from 1, "explanation": text}}')
    if not all(isinstance(rank, int) and rank >= 1 for rank in ranks):
        raise BadInput(f"{where}.ranks", "expected whole numbers from 1 (best)")


def _clean_prompt(prompt: Any, where: str, added: Added) -> Any:
    if isinstance(prompt, str) and prompt.strip():
        return _clean(prompt, where, added)
    if not isinstance(prompt, list) or not prompt:
        raise BadInput(where, "expected a text, or a list of messages that ends with the user's")
    messages = []
    for message in prompt:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise BadInput(where, 'expected messages {"role": text, "content": text}')
        role = message.get("role")
        if role not in ("system", "user", "assistant"):
            raise BadInput(where, f"unknown role {role!r}; there are system, user, assistant")
        messages.append({"role": role, "content": _clean(message["content"], where, added)})
    if messages[-1]["role"] != "user":
        raise BadInput(where, "the last message must be the user's")
    return messages


def _clean(text: str, where: str, added: Added) -> str:
    kept, replaced = NO_CHARACTER.subn("\ufffd", text)
    added.replaced += replaced
    try:
        return check_text(kept)
    except ValueError as error:
        raise BadInput(where, str(error)) from None


def _insert_chunk(
    connection: Connection,
    spec: BatchSpec,
    batch_id: str,
    contents: Sequence[dict[str, Any]],
    person: str | None,
    added: Added,
) -> None:
    shas = [content_sha(content) for content in contents]
    there = sa.select(item.c.content_sha).where(item.c.batch == batch_id, item.c.content_sha.in_(shas))
    known = set(connection.execute(there).scalars())
    items: list[dict[str, Any]] = []
    responses: list[dict[str, Any]] = []
    for sha, content in zip(shas, contents, strict=True):
        if sha in known:
            added.known += 1
            continue
        known.add(sha)
        leaks = spec.purpose == "ab" and names_its_policy(content)
        added.leaks += leaks
        added.added += not leaks
        gold_id = insert_gold(connection, spec.kind, content["gold"], person)
        values = item_values(spec, batch_id, content, gold_id)
        values["state"] = "void" if leaks else "open"
        # In the order of the file, also within a millisecond.
        values["position"] += len(items)
        items.append(values)
        responses += response_values(values["id"], content)
    if items:
        connection.execute(item.insert(), items)
    if responses:
        connection.execute(response.insert(), responses)


def content_sha(content: dict[str, Any]) -> str:
    """Equal for items with the same prompt and responses."""
    return hashlib.sha256(to_json([content["prompt"], content["responses"]]).encode()).hexdigest()


def item_values(
    spec: BatchSpec, batch_id: str, content: dict[str, Any], gold_id: str | None = None
) -> dict[str, Any]:
    """An open item, for an insert."""
    return {
        "id": new_id(),
        "position": now_ms() * 1000,
        "batch": batch_id,
        "kind": spec.kind,
        "content_sha": content_sha(content),
        "prompt": content["prompt"],
        "row": content["row"],
        "quota": NO_LIMIT if spec.purpose in SHARED else spec.quota,
        "priority": spec.priority,
        "gold": gold_id,
        "state": "open",
    }


def response_values(item_id: str, content: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows for the responses of an item, from the keys of the row of an import."""
    columns = ("responses", "ended", "policy", "decoding", "reward")
    rows = []
    for position, values in enumerate(zip(*(content[key] for key in columns), strict=True)):
        text, ended, policy, decoding, reward = values
        rows.append(
            {
                "id": new_id(),
                "item": item_id,
                "position": position,
                "text": text,
                "ended": ended is not False,
                "policy": policy,
                "decoding": decoding,
                "reward": reward,
            }
        )
    return rows


def insert_responses(connection: Connection, item_id: str, content: dict[str, Any]) -> None:
    if rows := response_values(item_id, content):
        connection.execute(response.insert(), rows)


def insert_gold(connection: Connection, kind: str, answer: Any, person: str | None) -> str | None:
    if answer is None:
        return None
    values = {
        "id": new_id(),
        "kind": kind,
        "answer": {"ranks": answer["ranks"]},
        "explanation": str(answer.get("explanation", "")),
        "author": person or "",
        "created": now_ms(),
    }
    connection.execute(gold.insert().values(values))
    return str(values["id"])


def names_its_policy(content: dict[str, Any]) -> bool:
    """Whether a response says which model or version it is from, so that a comparison is not blind."""
    for text, policy in zip(content["responses"], content["policy"], strict=True):
        names = [str(value) for value in (policy or {}).values() if len(str(value)) >= 3]
        if any(name.lower() in text.lower() for name in names):
            return True
    return False


def responses_of(connection: Connection, item_ids: Sequence[str]) -> dict[str, list[Any]]:
    """The responses of items in the order of the import, by item."""
    rows: dict[str, list[Any]] = {}
    query = (
        sa.select(response)
        .where(response.c.item.in_(item_ids))
        .order_by(response.c.item, response.c.position)
    )
    for row in connection.execute(query):
        rows.setdefault(row.item, []).append(row)
    return rows


def read_rows(path: Any) -> list[dict[str, Any]]:
    """Rows of a JSONL file of items. Raises UserError."""
    from common.files import read_jsonl

    if not path.is_file():
        raise UserError(f"{path}: no such file; expected JSONL with a prompt and its responses in each line")
    return read_jsonl(path)
