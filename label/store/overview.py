"""A person's own figures for the start page."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from label.store.assignments import DAY_MS, OPEN
from label.store.database import now_ms
from label.store.items import SHARED
from label.store.labels import CURRENT
from label.store.tables import assignment, batch, item, label


def overview(connection: Connection, person_id: str) -> dict[str, Any]:
    """What waits by kind, labels given, minutes at work today."""
    had = sa.select(assignment.c.id).where(assignment.c.item == item.c.id, assignment.c.person == person_id)
    waiting = (
        sa.select(item.c.kind, sa.func.count().label("number"))
        .join(batch, batch.c.id == item.c.batch)
        .where(sa.text("item.state = 'open' AND item.labels + item.leases < item.quota"))
        .where(batch.c.state == "open", batch.c.purpose.not_in(SHARED), ~had.exists())
        .where(sa.or_(item.c.reserved_for.is_(None), item.c.reserved_for == person_id))
        .group_by(item.c.kind)
    )
    mine = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(label.c.active_ms), 0)).where(
        label.c.person == person_id, CURRENT
    )
    today = mine.where(label.c.submitted > now_ms() - DAY_MS)
    opened = sa.select(sa.func.count()).where(assignment.c.person == person_id, assignment.c.state.in_(OPEN))
    total, total_ms = connection.execute(mine).one()
    recent, recent_ms = connection.execute(today).one()
    return {
        "waiting": {row.kind: row.number for row in connection.execute(waiting)},
        "open": connection.execute(opened).scalar_one(),
        "labels": total,
        "minutes": round(int(total_ms) / 60_000, 1),
        "labels_today": recent,
        "minutes_today": round(int(recent_ms) / 60_000, 1),
    }
