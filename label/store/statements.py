"""Statements of the work, built once: building one costs more than the database takes to answer it.
Parameters: `who` is a person's id, `kinds` are kinds of work, `one` is the id of the row that is meant."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from label.store.items import SHARED
from label.store.tables import (
    acknowledgement,
    assignment,
    batch,
    guideline,
    item,
    label,
    person,
    rating,
    response,
    review,
    session,
)

OPEN = ("leased", "draft")
HAS_ROOM = sa.text("item.state = 'open' AND item.labels + item.leases < item.quota")
"""As literals, or SQLite does not use the index on waiting items."""
WHO = sa.bindparam("who", type_=sa.Text)
ONE = sa.bindparam("one", type_=sa.Text)
_OF_KINDS = item.c.kind.in_(sa.bindparam("kinds", expanding=True))

OF_SESSION = (
    sa.select(person)
    .join(session, session.c.person == person.c.id)
    .where(session.c.sha256 == sa.bindparam("sha"), session.c.expires > sa.bindparam("now"))
)
LOCK_PERSON = sa.select(person).where(person.c.id == WHO).with_for_update()


def joined() -> sa.Select[Any]:
    """Assignments with what is needed of their items and batches."""
    columns = (item.c.kind, item.c.prompt, item.c.labels, item.c.leases, item.c.quota, item.c.gold)
    states = (
        item.c.state.label("item_state"),
        batch.c.state.label("batch_state"),
        batch.c.round,
        batch.c.purpose,
    )
    tables = assignment.join(item, item.c.id == assignment.c.item).join(batch, batch.c.id == item.c.batch)
    return sa.select(assignment, *columns, *states).select_from(tables)


OPENED = (
    joined()
    .where(assignment.c.person == WHO, assignment.c.state.in_(OPEN), _OF_KINDS)
    .order_by(assignment.c.leased)
    .limit(1)
)
"""What the person works on already."""
OWN = joined().where(assignment.c.id == ONE, assignment.c.person == WHO)
OWN = OWN.with_for_update(of=[assignment, item])
"""An assignment of the person, locked with its item."""

_had = sa.select(assignment.c.id).where(assignment.c.item == item.c.id, assignment.c.person == WHO)
_reviewed = (
    sa.select(review.c.id)
    .join(label, label.c.id == review.c.label)
    .where(label.c.item == item.c.id, review.c.reviewer == WHO)
)
WAITING = (
    sa.select(item.c.id, item.c.kind, item.c.prompt)
    .join(batch, batch.c.id == item.c.batch)
    .where(HAS_ROOM, batch.c.state == "open", batch.c.purpose.not_in(SHARED), _OF_KINDS)
    .where(sa.or_(item.c.reserved_for.is_(None), item.c.reserved_for == WHO))
    .where(sa.or_(item.c.author.is_(None), item.c.author != WHO), ~_had.exists(), ~_reviewed.exists())
    .order_by(item.c.priority.desc(), item.c.position)
    .limit(1)
    .with_for_update(skip_locked=True, of=item)
)
"""The first item with room that the person never had, did not write and has not reviewed."""
LET_EXPIRE = (
    joined()
    .where(assignment.c.person == WHO, assignment.c.state == "expired", _OF_KINDS)
    .where(HAS_ROOM, batch.c.state == "open")
    .limit(1)
    .with_for_update(skip_locked=True, of=[assignment, item])
)
"""An item whose lease the person let expire, if nobody has taken it since."""
EXPIRED = (
    sa.select(assignment.c.id, assignment.c.item, assignment.c.state)
    .where(sa.text("assignment.state IN ('leased', 'draft')"), assignment.c.expires < sa.bindparam("now"))
    .order_by(assignment.c.item)
    .limit(sa.bindparam("most"))
    .with_for_update(skip_locked=True)
)
"""Leases that ran out."""

RESPONSES = sa.select(response.c.id, response.c.text, response.c.ended).where(response.c.item == ONE)
RESPONSES = RESPONSES.order_by(response.c.position)
"""What a person sees of the responses of an item."""
IN_FORCE = (
    sa.select(guideline.c.version, acknowledgement.c.time.label("read_at"))
    .outerjoin(
        acknowledgement,
        sa.and_(acknowledgement.c.guideline == guideline.c.version, acknowledgement.c.person == WHO),
    )
    .where(guideline.c.kind == sa.bindparam("kind_of_work"))
    .order_by(guideline.c.version.desc())
    .limit(1)
)
"""The newest guideline of a kind, and when the person has read it."""
STORED = sa.select(label.c.id, label.c.assignment, label.c.extra)
STORED = STORED.where(label.c.person == WHO, label.c.submit_key == sa.bindparam("key"))
"""The label that a person has sent with a key."""

ADD_ASSIGNMENT = assignment.insert()
CHANGE_ASSIGNMENT = assignment.update().where(assignment.c.id == ONE)
CHANGE_ITEM = item.update().where(item.c.id == ONE)
ADD_LEASES = CHANGE_ITEM.values(leases=item.c.leases + sa.bindparam("leases_more"))
_labels = item.c.labels + sa.bindparam("labels_more")
COUNT = ADD_LEASES.values(
    labels=_labels, state=sa.case((_labels >= item.c.quota, "closed"), else_=item.c.state)
)
"""Adds to the counts of an item, and closes it when its quota is full."""
ADD_LABEL = label.insert()
ADD_RATINGS = rating.insert()
