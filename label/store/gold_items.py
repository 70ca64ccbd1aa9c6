"""Items with a known answer: their list with how people did on them, retirement, and suggestions from items
on which everybody agrees, which an owner confirms."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from label.errors import NotHere
from label.quality.gold import gold_accuracy
from label.store.database import now_ms, record_event
from label.store.items import (
    NO_LIMIT,
    SHARED,
    BatchSpec,
    insert_gold,
    insert_responses,
    new_id,
    open_batch,
    responses_of,
)
from label.store.labels import CURRENT
from label.store.tables import batch, gold, item, label, person

UNANIMOUS = 3
"""People who agree on an item before it is suggested."""


def list_gold(connection: Connection) -> list[dict[str, Any]]:
    """Every gold item with its answer and the accuracy of those who had it. An item that good people miss is
    a bad item: retire it."""
    query = (
        sa.select(gold, item.c.id.label("item"), item.c.prompt, batch.c.name.label("batch_name"))
        .join(item, item.c.gold == gold.c.id)
        .join(batch, batch.c.id == item.c.batch)
        .order_by(gold.c.created, gold.c.id)
    )
    rows = connection.execute(query).all()
    responses = responses_of(connection, [row.item for row in rows])
    given = _ranks_by_item(connection, [row.item for row in rows])
    found = []
    for row in rows:
        ids = [one.id for one in responses[row.item]]
        answers = [([ranks[one] for one in ids], row.answer["ranks"]) for ranks in given[row.item]]
        found.append(
            {
                "gold": row.id,
                "batch": row.batch_name,
                "prompt": row.prompt,
                "responses": [one.text for one in responses[row.item]],
                "ranks": row.answer["ranks"],
                "explanation": row.explanation,
                "answers": len(answers),
                "accuracy": gold_accuracy(answers).to_json(),
                "retired": row.retired,
            }
        )
    return found


def _ranks_by_item(connection: Connection, items: list[str]) -> dict[str, list[dict[str, int]]]:
    given: dict[str, list[dict[str, int]]] = defaultdict(list)
    query = sa.select(label.c.item, label.c.ranks).where(CURRENT, label.c.item.in_(items))
    for row in connection.execute(query):
        if row.ranks:
            given[row.item].append(row.ranks)
    return given


def retire(connection: Connection, gold_id: str, person_id: str) -> None:
    """Takes a gold item out of work and out of everybody's figures; its labels stay."""
    changed = connection.execute(gold.update().where(gold.c.id == gold_id).values(retired=now_ms()))
    if not changed.rowcount:
        raise NotHere("gold", "there is no such gold item")
    connection.execute(item.update().where(item.c.gold == gold_id).values(state="closed"))
    record_event(connection, "gold_retired", person_id, gold_id)


def suggestions(connection: Connection, limit: int = 20) -> list[dict[str, Any]]:
    """Items that at least `UNANIMOUS` admitted people ranked alike, and not all equal."""
    many = (
        sa.select(label.c.item)
        .where(CURRENT)
        .group_by(label.c.item)
        .having(sa.func.count() >= UNANIMOUS)
        .subquery()
    )
    query = (
        sa.select(label.c.item, label.c.ranks, label.c.all_bad, person.c.state, item.c.prompt)
        .join(person, person.c.id == label.c.person)
        .join(item, item.c.id == label.c.item)
        .join(batch, batch.c.id == item.c.batch)
        .where(CURRENT, item.c.id.in_(sa.select(many.c.item)), item.c.gold.is_(None))
        .where(item.c.repeat_of.is_(None), batch.c.purpose.not_in(SHARED), label.c.kind != "demonstrate")
        .where(~_is_promoted())
    )
    by_item = defaultdict(list)
    for row in connection.execute(query):
        if row.state == "admitted" and not row.all_bad:
            by_item[row.item].append(row)
    found = []
    for name, rows in by_item.items():
        ranks = rows[0].ranks
        is_ordered = len(set(ranks.values())) > 1
        if len(rows) >= UNANIMOUS and is_ordered and all(row.ranks == ranks for row in rows):
            found.append({"item": name, "prompt": rows[0].prompt, "labels": len(rows)})
    return found[:limit]


def _is_promoted() -> sa.Exists:
    copies = item.alias("copies")
    return sa.select(copies.c.id).where(copies.c.content_sha == sa.literal("gold:") + item.c.id).exists()


def promote(connection: Connection, item_id: str, explanation: str, person_id: str) -> str:
    """Makes a gold item with the content of an item and the ranks that people agree on; returns its id.
    Raises NotHere for an item that is not among the suggestions any more."""
    if item_id not in {one["item"] for one in suggestions(connection, 10**6)}:
        raise NotHere("item", "people do not agree on this item, or it is gold already")
    old = connection.execute(sa.select(item).where(item.c.id == item_id)).one()
    rows = responses_of(connection, [item_id])[item_id]
    (ranks, *_) = _ranks_by_item(connection, [item_id])[item_id]
    answer = {"ranks": [ranks[one.id] for one in rows], "explanation": explanation}
    batch_id = open_batch(connection, BatchSpec(f"gold-{old.kind}", old.kind, purpose="gold"), person_id)
    gold_id = insert_gold(connection, old.kind, answer, person_id)
    values = {
        "id": new_id(),
        "position": now_ms() * 1000,
        "batch": batch_id,
        "kind": old.kind,
        "content_sha": f"gold:{old.id}",
        "prompt": old.prompt,
        "row": old.row,
        "quota": NO_LIMIT,
        "gold": gold_id,
        "state": "open",
    }
    connection.execute(item.insert().values(values))
    content = {key: [one._mapping[key] for one in rows] for key in ("ended", "policy", "decoding", "reward")}
    insert_responses(connection, values["id"], {**content, "responses": [one.text for one in rows]})
    record_event(connection, "gold_promoted", person_id, old.id, gold=gold_id)
    return str(gold_id)
