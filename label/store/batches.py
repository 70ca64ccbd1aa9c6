"""Batches as owners and reviewers see them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from label.errors import NotHere
from label.store.database import record_event
from label.store.tables import batch, item


def set_batch_state(connection: Connection, batch_id: str, state: str, person: str) -> None:
    """Opens or closes a batch."""
    result = connection.execute(batch.update().where(batch.c.id == batch_id).values(state=state))
    if not result.rowcount:
        raise NotHere("batch", "there is no such batch")
    record_event(connection, f"batch_{state}", person, batch_id)


def list_batches(connection: Connection) -> list[dict[str, Any]]:
    """Every batch with its counts: items, and labels given and asked for."""
    open_items = sa.case((item.c.state == "open", 1), else_=0)
    query = (
        sa.select(
            batch,
            sa.func.count(item.c.id).label("items"),
            sa.func.coalesce(sa.func.sum(open_items), 0).label("open_items"),
            sa.func.coalesce(sa.func.sum(item.c.labels), 0).label("labels"),
            sa.func.coalesce(sa.func.sum(item.c.leases), 0).label("leases"),
        )
        .select_from(batch.outerjoin(item, sa.and_(item.c.batch == batch.c.id, item.c.repeat_of.is_(None))))
        .group_by(batch.c.id)
        .order_by(batch.c.created)
    )
    return [dict(row._mapping) for row in connection.execute(query)]
