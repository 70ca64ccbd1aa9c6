"""Looks at the labels of people while they work, and pauses where the figures are a reason (`label.quality`).

A look is due after every `label.pause.every` labels of a person, or a twentieth more than at the last one. It
stores the figures for the owner's page, and the share of gold items that the person gets next. A pause is
reversible, tells its reason, and holds the person's labels back from exports; it drops none. After an owner
has decided, the figures begin anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from label.config import LabelConfig
from label.quality.judgment import Judgment
from label.quality.monitor import PersonQuality, next_gold_share, person_quality
from label.store.assignments import lock_person
from label.store.database import AnyRow, Database, now_ms
from label.store.items import responses_of
from label.store.labels import CURRENT, ratings_of
from label.store.people import set_state
from label.store.screening_tables import decision, quality
from label.store.tables import assignment, gold, item, label, person

CHUNK = 500
PAUSED = "The check of quality paused you: {}. An owner looks at it and decides; your labels are kept."


_columns = [label.c[name] for name in ("id", "item", "person", "ranks", "active_ms", "submitted")]
JUDGED = (
    sa.select(*_columns, assignment.c.order, item.c.prompt, item.c.repeat_of, person.c.pseudonym)
    .add_columns(gold.c.answer)
    .join(assignment, assignment.c.id == label.c.assignment)
    .join(item, item.c.id == label.c.item)
    .join(person, person.c.id == label.c.person)
    .outerjoin(gold, sa.and_(gold.c.id == item.c.gold, gold.c.retired.is_(None)))
    .where(CURRENT, label.c.kind.in_(("rank", "pair")), label.c.ranks.is_not(None))
    .order_by(label.c.submitted.desc(), label.c.id)
)


def judgments(
    connection: Connection, person_id: str | None = None, limit: int | None = None
) -> list[Judgment]:
    """Rankings and comparisons that count, the latest `limit` of them, of one person or of everybody; gold,
    calibration and repeated items too."""
    query = JUDGED
    if person_id is not None:
        query = query.where(label.c.person == person_id)
    rows = connection.execute(query.limit(limit) if limit else query).all()
    found: list[Judgment] = []
    for start in range(0, len(rows), CHUNK):
        found += _judgments(connection, rows[start : start + CHUNK])
    return found


def _judgments(connection: Connection, rows: Sequence[AnyRow]) -> Iterator[Judgment]:
    originals = [row.repeat_of for row in rows if row.repeat_of]
    responses = responses_of(connection, [*{row.item for row in rows}, *originals])
    ratings = ratings_of(connection, [row.id for row in rows])
    earlier = _earlier(connection, originals)
    for row in rows:
        ids = [one.id for one in responses[row.item]]
        before = earlier.get((row.repeat_of, row.person))
        values = {
            "prompt": row.prompt,
            "responses": [one.text for one in responses[row.item]],
            "ranks": [row.ranks[one] for one in ids],
            "order": [ids.index(one) for one in row.order],
            "likert": [ratings.get(row.id, {}).get(one, {}).get("likert") for one in ids],
            "labeler": row.pseudonym,
            "item": row.item,
            "active_ms": row.active_ms,
            "time": row.submitted / 1000,
            "policy": _policies(responses[row.item]),
        }
        repeated = [before[one.id] for one in responses[row.repeat_of]] if before else ()
        yield Judgment.from_row(values, (row.answer or {}).get("ranks", ()), repeated)


def _policies(responses: Sequence[AnyRow]) -> list[dict[str, Any]]:
    policies = [one.policy for one in responses]
    if all(isinstance(one, dict) and {"model", "version"} <= one.keys() for one in policies):
        return policies
    return []


def _earlier(connection: Connection, items: Sequence[str]) -> dict[tuple[str, str], dict[str, int]]:
    """(item, person) -> ranks by response id, of the items that were repeated."""
    if not items:
        return {}
    query = sa.select(label.c.item, label.c.person, label.c.ranks).where(label.c.item.in_(items), CURRENT)
    return {(row.item, row.person): row.ranks for row in connection.execute(query)}


def last_decision(connection: Connection, person_id: str) -> float:
    """When somebody else last admitted the person, in seconds since 1970. A pause that one ends oneself is
    no such decision."""
    query = sa.select(sa.func.max(decision.c.time)).where(
        decision.c.person == person_id, decision.c.what == "admitted", decision.c.by_person != person_id
    )
    return (connection.execute(query).scalar() or 0) / 1000


def figures_of(connection: Connection, settings: LabelConfig, person_id: str) -> PersonQuality:
    config = settings.pause
    recent = judgments(connection, person_id, config.window)
    return person_quality(recent, config, last_decision(connection, person_id))


_own_labels = sa.select(sa.func.count()).where(label.c.person == sa.bindparam("who"), CURRENT)
_seen_labels = sa.select(quality.c.labels).where(quality.c.person == sa.bindparam("who"))
COUNTS = sa.select(
    _own_labels.scalar_subquery().label("labels"), _seen_labels.scalar_subquery().label("seen")
)
"""How many labels of a person count, now and at the last look."""


def is_look_due(database: Database, settings: LabelConfig, person_id: str) -> bool:
    with database.read() as connection:
        counts = connection.execute(COUNTS, {"who": person_id}).one()
    # Rarer for who has given many, as a look reads them all. An undo makes it fewer than before.
    return abs(counts.labels - (counts.seen or 0)) >= max(settings.pause.every, counts.labels // 20)


def look(database: Database, settings: LabelConfig, person_id: str) -> PersonQuality:
    """Looks at a person's figures, and pauses if they are a reason."""
    with database.read() as connection:
        labels = connection.execute(COUNTS, {"who": person_id}).one().labels
        figures = figures_of(connection, settings, person_id)
    reasons = [finding.reason for finding in figures.findings if finding.pauses]
    with database.write() as connection:
        state = lock_person(connection, person_id).state
        store_figures(connection, settings, person_id, figures, labels)
        if reasons and settings.pause.enabled and state == "admitted":
            evidence = {"findings": [vars(finding) for finding in figures.findings]}
            set_state(connection, person_id, "paused", "system", PAUSED.format("; ".join(reasons)), evidence)
    return figures


def store_figures(
    connection: Connection, settings: LabelConfig, person_id: str, figures: PersonQuality, labels: int
) -> None:
    values = {
        "labels": labels,
        "gold_share": next_gold_share(figures, settings.gold_share, settings.pause),
        "figures": figures.to_json(),
        "time": now_ms(),
    }
    changed = connection.execute(quality.update().where(quality.c.person == person_id).values(values))
    if not changed.rowcount:
        connection.execute(quality.insert().values({"person": person_id, **values}))
