"""Who works on which item: leases that expire, and quotas that hold exactly.

    leased ─► draft ─► submitted        undo leads back to draft
       ├──────► skipped
       ├──────► expired                 no heartbeat within the lease; the item goes to the next person
       └──────► revoked                 the person was paused, left or withdrew

An item counts its labels and its leases; their sum never exceeds its quota (a CHECK of the table, kept in
the same transaction as the lease). Locks are taken in the order person, assignment, item.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from label.config import LabelConfig
from label.errors import Conflict, Forbidden, NotHere
from label.store.database import AnyRow, now_ms, record_event
from label.store.guidelines import check_acknowledged
from label.store.items import new_id
from label.store.special import choose_special
from label.store.statements import (
    ADD_ASSIGNMENT,
    ADD_LEASES,
    CHANGE_ASSIGNMENT,
    EXPIRED,
    LET_EXPIRE,
    LOCK_PERSON,
    OPEN,
    OPENED,
    OWN,
    RESPONSES,
    WAITING,
    joined,
)
from label.store.tables import assignment, label
from label.vocabulary import SKIP_REASONS

DAY_MS = 86_400_000
ACTIVE_SLACK_MS = 2_000
"""By how much the reported time at work may exceed the server's clock."""

STATES = {
    "screening": "your answers are being looked at; an owner decides, and this page then shows work",
    "paused": "you are paused; the start page says why; ask the owner to look at it",
    "rejected": "you were not admitted; ask the owner",
    "left": "you have left; ask the owner for a new invite to come back",
    "forgotten": "your data was removed",
}


def check_admitted(row: AnyRow) -> None:
    """Raises Forbidden for a person who may not label now."""
    if row.state != "admitted":
        raise Forbidden(f"state_{row.state}", STATES[row.state], why=row.state_why)


def lock_person(connection: Connection, person_id: str) -> AnyRow:
    """The person's row, locked: one request of a person at a time. Raises NotHere."""
    row = connection.execute(LOCK_PERSON, {"who": person_id}).first()
    if row is None:
        raise NotHere("person", "there is no such person")
    return row


def next_assignment(
    connection: Connection, settings: LabelConfig, person_id: str, kinds: Sequence[str], rng: random.Random
) -> dict[str, Any] | None:
    """The item that the person works on: the one that is open already, else a new one; None if nothing
    waits. Raises Forbidden if the person may not label, or has not read the newest guideline."""
    row = lock_person(connection, person_id)
    check_admitted(row)
    now = now_ms()
    reap_expired(connection, now)
    opened = connection.execute(OPENED, {"who": person_id, "kinds": kinds}).first()
    if opened is not None:
        return describe(connection, opened)
    _check_limits(connection, settings, person_id, now)
    return _claim(connection, settings, person_id, kinds, rng, now)


def _check_limits(connection: Connection, settings: LabelConfig, person_id: str, now: int) -> None:
    quota, daily = settings.quota_per_person, settings.daily_max
    if not quota and not daily:
        return
    own = sa.select(sa.func.count()).where(label.c.person == person_id, label.c.supersedes.is_(None))
    if quota and connection.execute(own).scalar_one() >= quota:
        raise Forbidden("person_quota", f"you have given all of your {quota} labels; thank you")
    if daily and connection.execute(own.where(label.c.submitted > now - DAY_MS)).scalar_one() >= daily:
        raise Forbidden("daily_max", f"you have given {daily} labels within 24 hours; go on tomorrow")


def _claim(
    connection: Connection,
    settings: LabelConfig,
    person_id: str,
    kinds: Sequence[str],
    rng: random.Random,
    now: int,
) -> dict[str, Any] | None:
    chosen = choose_special(connection, settings, person_id, kinds, rng)
    if chosen is None:
        chosen = connection.execute(WAITING, {"who": person_id, "kinds": kinds}).first()
    if chosen is None:
        return _revive(connection, settings, person_id, kinds, now)
    guideline = check_acknowledged(connection, person_id, chosen.kind)
    responses = connection.execute(RESPONSES, {"one": chosen.id}).all()
    order = [row.id for row in responses]
    rng.shuffle(order)
    values = {
        "id": new_id(),
        "item": chosen.id,
        "person": person_id,
        "state": "leased",
        "order": order,
        "leased": now,
        "expires": now + _lease_ms(settings),
        "guideline": guideline,
    }
    connection.execute(ADD_ASSIGNMENT, values)
    connection.execute(ADD_LEASES, {"one": chosen.id, "leases_more": 1})
    return _shown({**values, "kind": chosen.kind, "prompt": chosen.prompt, "draft": None}, responses)


def _revive(
    connection: Connection, settings: LabelConfig, person_id: str, kinds: Sequence[str], now: int
) -> dict[str, Any] | None:
    """With nothing new waiting: an item whose lease the person let expire, if nobody has taken it since."""
    row = connection.execute(LET_EXPIRE, {"who": person_id, "kinds": kinds}).first()
    if row is None:
        return None
    check_acknowledged(connection, person_id, row.kind)
    renew(connection, settings, row, now)
    return describe(connection, connection.execute(joined().where(assignment.c.id == row.id)).one())


def renew(connection: Connection, settings: LabelConfig, row: AnyRow, now: int) -> None:
    """Leases an item again to somebody who had it. The caller knows that there is room."""
    state = "draft" if row.draft else "leased"
    values = {"state": state, "expires": now + _lease_ms(settings)}
    connection.execute(CHANGE_ASSIGNMENT, {"one": row.id, **values})
    connection.execute(ADD_LEASES, {"one": row.item, "leases_more": 1, "state": "open"})


def _lease_ms(settings: LabelConfig) -> int:
    return int(settings.lease_min * 60_000)


def describe(connection: Connection, row: AnyRow) -> dict[str, Any]:
    """What the person sees of an item, and nothing else of it: no model, reward, gold or truth."""
    return _shown(row._asdict(), connection.execute(RESPONSES, {"one": row.item}).all())


def _shown(row: Mapping[str, Any], responses: Sequence[AnyRow]) -> dict[str, Any]:
    by_id = {one.id: {"id": one.id, "text": one.text, "ended": one.ended} for one in responses}
    return {
        "assignment": row["id"],
        "responses": [by_id[response_id] for response_id in row["order"]],
        **{key: row[key] for key in ("kind", "prompt", "expires", "guideline", "draft")},
    }


def own_assignment(connection: Connection, person_id: str, assignment_id: str) -> AnyRow:
    """The assignment with its item, both locked, as the room there is depends on both. Raises NotHere for
    those of others, as for none."""
    row = connection.execute(OWN, {"one": assignment_id, "who": person_id}).first()
    if row is None:
        raise NotHere("assignment", "this item is not yours")
    return row


def save_progress(
    connection: Connection,
    settings: LabelConfig,
    person_id: str,
    assignment_id: str,
    active_ms: int,
    draft: dict[str, Any] | None = None,
) -> int:
    """Heartbeat, with or without a draft: adds time at work and renews the lease. Returns when it expires;
    of a lease that is lost already this keeps the draft. Raises Conflict if the item is finished."""
    lock_person(connection, person_id)
    row = own_assignment(connection, person_id, assignment_id)
    if row.state in ("submitted", "skipped"):
        raise Conflict(row.state, f"this item is {row.state} already; open the next one")
    now = now_ms()
    values: dict[str, Any] = {"active_ms": total_active_ms(row, active_ms, now)}
    if draft is not None:
        values["draft"] = draft
    if row.state in OPEN:
        values["expires"] = now + _lease_ms(settings)
        values["state"] = "draft" if draft is not None else row.state
    connection.execute(CHANGE_ASSIGNMENT, {"one": row.id, **values})
    return int(values.get("expires", row.expires))


def total_active_ms(row: AnyRow, more: int, now: int) -> int:
    """Time at work: what the page has measured with its own clock, and never more than has passed here."""
    return int(min(row.active_ms + more, max(0, now - row.leased) + ACTIVE_SLACK_MS))


def skip(connection: Connection, person_id: str, assignment_id: str, reason: str) -> None:
    """Gives an item back for good; skipping twice is skipping once."""
    lock_person(connection, person_id)
    row = own_assignment(connection, person_id, assignment_id)
    if row.state == "skipped":
        return
    if row.state == "submitted":
        raise Conflict("submitted", "this item is submitted already; undo the label under your labels")
    if reason not in SKIP_REASONS:
        raise Conflict("reason", f"unknown reason {reason!r}; there are {', '.join(SKIP_REASONS)}")
    _end_lease(connection, [row], "skipped")
    connection.execute(CHANGE_ASSIGNMENT, {"one": row.id, "skip_reason": reason})
    record_event(connection, "skip", person_id, row.id, reason=reason)


def reap_expired(connection: Connection, now: int, limit: int = 200) -> int:
    """Ends leases that ran out, so that their items are given again. Returns how many."""
    rows = connection.execute(EXPIRED, {"now": now, "most": limit}).all()
    _end_lease(connection, rows, "expired")
    return len(rows)


def revoke(connection: Connection, person_id: str) -> None:
    """Ends all leases of a person."""
    query = sa.select(assignment.c.id, assignment.c.item, assignment.c.state)
    mine = query.where(assignment.c.person == person_id, assignment.c.state.in_(OPEN)).order_by(
        assignment.c.item
    )
    _end_lease(connection, connection.execute(mine.with_for_update()).all(), "revoked")


def _end_lease(connection: Connection, rows: Sequence[AnyRow], state: str) -> None:
    for row in rows:
        connection.execute(CHANGE_ASSIGNMENT, {"one": row.id, "state": state})
        if row.state in OPEN:
            connection.execute(ADD_LEASES, {"one": row.item, "leases_more": -1})


def system_rng() -> random.Random:
    """For shuffles that nobody can foresee."""
    return secrets.SystemRandom()
