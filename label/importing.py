"""Stores what `label.formats` has read: items to label, and labels that people gave elsewhere.

People of an import have no name here and are in screening, so that their labels are held back until an owner
admits them. A label that is known already is left out, whichever file it comes in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from label.errors import BadInput
from label.formats.registry import Imported, import_labels
from label.formats.rows import Row, content_hash
from label.store.database import Database, now_ms, record_event
from label.store.items import (
    CHUNK,
    Added,
    BatchSpec,
    add_items,
    content_sha,
    insert_responses,
    item_values,
    new_id,
    open_batch,
    read_item,
    responses_of,
)
from label.store.tables import assignment, item, label, meta, person, rating
from label.vocabulary import PROMPT_FLAGS, RESPONSE_FLAGS

KEY = "import:"
"""Begins the submit keys of imported labels; the content hash follows."""


def import_file(
    database: Database, path: Path, format_name: str, spec: BatchSpec, max_invalid: int = 0
) -> Counter[str]:
    """Reads a file or folder and stores its items and labels; returns counts. Raises UserError that names
    file and line, before anything is stored."""
    with database.write() as connection:
        salt = _salt(connection)
        keys = sa.select(label.c.submit_key).where(label.c.submit_key.startswith(KEY))
        known = {key.removeprefix(KEY) for key in connection.execute(keys).scalars()}
    imported = import_labels(path, format_name, known, salt, max_invalid)
    return store(database, imported, spec)


def store(database: Database, imported: Imported, spec: BatchSpec) -> Counter[str]:
    counts = Counter(imported.counts)
    # An answer that is known makes a gold item, which is in no batch for training.
    gold = [_gold_row(row) for row in [*imported.items, *imported.labels] if row.get("gold")]
    if gold:
        name = f"{spec.name}-gold"
        counts["gold"] = add_items(database, BatchSpec(name, spec.kind, purpose="gold"), gold).added
    items = [row for row in imported.items if not row.get("gold")]
    added = add_items(database, spec, items)
    counts["items added"], counts["items known"] = added.added, added.known
    labels = [row for row in imported.labels if not row.get("gold")]
    for start in range(0, len(labels), CHUNK):
        with database.write() as connection:
            batch_id = open_batch(connection, spec)
            for row in labels[start : start + CHUNK]:
                counts[_store_label(connection, spec, batch_id, row)] += 1
    with database.write() as connection:
        record_event(connection, "import", "cli", spec.name, **counts)
    return counts


def _salt(connection: Connection) -> str:
    """Of the pseudonyms of imported people; it never leaves the database."""
    stored = connection.execute(sa.select(meta.c.value).where(meta.c.name == "import_salt")).scalar()
    if stored is None:
        stored = new_id() + new_id()
        connection.execute(meta.insert().values(name="import_salt", value=stored))
    return str(stored)


def _gold_row(row: Row) -> Row:
    gold = row["gold"]
    if not isinstance(gold, dict):
        # Label Studio's ground_truth says that the label itself is the known answer.
        gold = {"ranks": row.get("ranks"), "explanation": str(row.get("comment") or "")}
    return {**row, "gold": gold}


def _store_label(connection: Connection, spec: BatchSpec, batch_id: str, row: Row) -> str:
    """Returns what it counts as."""
    content = read_item({**row, "gold": None}, spec.kind, "row", Added())
    item_id = _item_of(connection, spec, batch_id, content)
    person_id = _person_of(connection, row, item_id)
    mine = sa.select(assignment.c.id).where(assignment.c.item == item_id, assignment.c.person == person_id)
    if connection.execute(mine).first():
        return "second labels of a person"
    _count_label(connection, item_id)
    ids = [one.id for one in responses_of(connection, [item_id])[item_id]]
    _insert_label(connection, spec.kind, item_id, person_id, ids, row)
    return "labels stored"


def _item_of(connection: Connection, spec: BatchSpec, batch_id: str, content: dict[str, Any]) -> str:
    there = sa.select(item.c.id).where(item.c.batch == batch_id, item.c.content_sha == content_sha(content))
    return connection.execute(there).scalar() or _new_item(connection, spec, batch_id, content)


def _count_label(connection: Connection, item_id: str) -> None:
    """Counts one more label of an item, whose quota grows if it is full."""
    is_full = item.c.labels + item.c.leases >= item.c.quota
    connection.execute(
        item.update()
        .where(item.c.id == item_id)
        .values(
            quota=sa.case((is_full, item.c.quota + 1), else_=item.c.quota),
            labels=item.c.labels + 1,
            state=sa.case((item.c.labels + 1 >= item.c.quota, "closed"), else_=item.c.state),
        )
    )


def _new_item(connection: Connection, spec: BatchSpec, batch_id: str, content: dict[str, Any]) -> str:
    values = item_values(spec, batch_id, content)
    connection.execute(item.insert().values(values))
    insert_responses(connection, values["id"], content)
    return str(values["id"])


def _person_of(connection: Connection, row: Row, item_id: str) -> str:
    name = row.get("labeler")
    if not name:
        # Without a name two labels of an item are two people's.
        count = sa.select(sa.func.count()).where(label.c.item == item_id)
        name = f"imported-anonymous-{connection.execute(count).scalar_one() + 1}"
    stored = connection.execute(sa.select(person.c.id).where(person.c.pseudonym == name)).scalar()
    if stored is not None:
        return str(stored)
    values: dict[str, Any] = {
        "id": new_id(),
        "name": "",
        "role": "labeler",
        "grp": "training",
        "state": "screening",
        "state_why": "from an import",
        "pseudonym": name,
        "consent_version": str(row.get("consent") or ""),
        "consent_at": now_ms(),
        "languages": [],
        "sensitive_ok": [],
        "created": now_ms(),
    }
    connection.execute(person.insert().values(values))
    return str(values["id"])


def _insert_label(
    connection: Connection, kind: str, item_id: str, person_id: str, ids: Sequence[str], row: Row
) -> None:
    places = row.get("order") or list(range(len(ids)))
    if sorted(places) != list(range(len(ids))):
        raise BadInput("order", "expected each place of the responses once")
    submitted = int(float(row.get("time") or 0) * 1000) or now_ms()
    digest, strength = content_hash(row), row.get("strength")
    if strength is not None and places[0] != 0:
        strength = -strength  # people say it of the response that was shown first
    work = {
        "id": new_id(),
        "item": item_id,
        "person": person_id,
        "state": "submitted",
        "order": [ids[place] for place in places],
        "leased": submitted,
        "expires": submitted,
        "active_ms": int(row.get("active_ms") or 0),
    }
    connection.execute(assignment.insert().values(work))
    values = {
        "id": new_id(),
        "assignment": work["id"],
        "item": item_id,
        "person": person_id,
        "kind": kind,
        "ranks": dict(zip(ids, row["ranks"], strict=True)),
        "all_bad": bool(row.get("all_bad")),
        "strength": strength,
        "confidence": row.get("confidence"),
        "comment": str(row.get("comment") or ""),
        "prompt_flags": [flag for flag in row.get("prompt_flags") or [] if flag in PROMPT_FLAGS],
        "submit_key": KEY + digest,
        "content_sha": digest,
        "submitted": submitted,
        "active_ms": work["active_ms"],
        "wall_ms": work["active_ms"],
        "extra": False,
    }
    connection.execute(label.insert().values(values))
    likert, flags = row.get("likert") or [None] * len(ids), row.get("flags") or [[] for _ in ids]
    ratings = []
    for response, value, marks in zip(ids, likert, flags, strict=True):
        known = [flag for flag in marks if flag in RESPONSE_FLAGS]
        ratings.append({"label": values["id"], "response": response, "likert": value, "flags": known})
    connection.execute(rating.insert(), ratings)
