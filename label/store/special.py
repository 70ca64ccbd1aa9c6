"""Items between the ordinary ones that measure a person: gold, shared calibration items, and repeats of
the person's own. They look like all others."""

from __future__ import annotations

import random
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy import Connection

from label.config import LabelConfig
from label.store.database import AnyRow
from label.store.items import SHARED, insert_responses, new_id, responses_of
from label.store.screening_tables import quality
from label.store.tables import assignment, batch, item, label


def choose_special(
    connection: Connection, settings: LabelConfig, person_id: str, kinds: Sequence[str], rng: random.Random
) -> AnyRow | None:
    """By chance a gold, calibration or repeated item in place of the next one; they look like any other."""
    draw, chosen = rng.random(), None
    gold_share = _gold_share(connection, settings, person_id)
    for purpose, share in (("gold", gold_share), ("calibration", settings.calibration_share)):
        if 0 <= draw < share:
            return _shared(connection, purpose, person_id, kinds)
        draw -= share
    if 0 <= draw < settings.repeat_share:
        chosen = _repeat(connection, person_id, kinds)
    return chosen


def _gold_share(connection: Connection, settings: LabelConfig, person_id: str) -> float:
    """More for a person whose accuracy is in doubt (`label.monitoring`)."""
    if not settings.gold_share:
        return 0.0
    stored = connection.execute(sa.select(quality.c.gold_share).where(quality.c.person == person_id)).scalar()
    return settings.gold_share if stored is None else float(stored)


def _shared(connection: Connection, purpose: str, person_id: str, kinds: Sequence[str]) -> AnyRow | None:
    had = sa.select(assignment.c.id).where(assignment.c.item == item.c.id, assignment.c.person == person_id)
    query = (
        sa.select(item.c.id, item.c.kind, item.c.prompt)
        .join(batch, batch.c.id == item.c.batch)
        .where(item.c.state == "open", batch.c.state == "open", batch.c.purpose == purpose)
        .where(item.c.kind.in_(kinds), ~had.exists())
        .order_by(item.c.position)
    )
    return connection.execute(query.limit(1)).first()


def _repeat(connection: Connection, person_id: str, kinds: Sequence[str]) -> AnyRow | None:
    """A new item with the content of one that the person labelled, the oldest that was not repeated yet;
    None with fewer than 20 labels since, as the answer would be remembered."""
    repeats = item.alias("repeats")
    repeated = sa.select(repeats.c.id).where(
        repeats.c.repeat_of == item.c.id, repeats.c.reserved_for == person_id
    )
    query = (
        sa.select(item)
        .join(label, label.c.item == item.c.id)
        .join(batch, batch.c.id == item.c.batch)
        .where(label.c.person == person_id, label.c.supersedes.is_(None), label.c.voided.is_(None))
        .where(item.c.kind.in_([kind for kind in kinds if kind != "demonstrate"]), item.c.repeat_of.is_(None))
        .where(batch.c.state == "open", batch.c.purpose.not_in(SHARED), ~repeated.exists())
        .order_by(label.c.submitted)
    )
    candidates = connection.execute(query.limit(20)).all()
    if len(candidates) < 20:
        return None
    old = candidates[0]
    values = {
        **old._mapping,
        "id": new_id(),
        "content_sha": f"repeat:{person_id}:{old.id}",
        "quota": 1,
        "labels": 0,
        "leases": 0,
        "state": "open",
        "repeat_of": old.id,
        "reserved_for": person_id,
    }
    connection.execute(item.insert().values(values))
    rows = responses_of(connection, [old.id])[old.id]
    keys = ("ended", "policy", "decoding", "reward")
    content = {key: [row._mapping[key] for row in rows] for key in keys}
    insert_responses(connection, values["id"], {**content, "responses": [row.text for row in rows]})
    query = sa.select(item.c.id, item.c.kind, item.c.prompt).where(item.c.id == values["id"])
    return connection.execute(query).first()
