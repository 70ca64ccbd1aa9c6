"""Labels: submit, edit, undo. A label is never changed: an edit is a new row that supersedes the old one,
and an undone one is marked void."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from label.config import LabelConfig
from label.errors import Conflict, Forbidden, NotHere
from label.store.assignments import (
    check_admitted,
    describe,
    lock_person,
    own_assignment,
    renew,
    total_active_ms,
)
from label.store.database import AnyRow, now_ms, record_event
from label.store.guidelines import check_acknowledged
from label.store.items import new_id
from label.store.late import LATE, is_late_for_round
from label.store.statements import (
    ADD_LABEL,
    ADD_RATINGS,
    CHANGE_ASSIGNMENT,
    COUNT,
    OPEN,
    STORED,
    joined,
)
from label.store.tables import assignment, demonstration, item, label, rating
from label.submission import Submission, check


class QuotaFilled(Conflict):
    """The lease ran out and others have filled the quota of the item."""


_successor = label.alias("successor")
CURRENT = sa.and_(
    label.c.voided.is_(None),
    ~sa.select(_successor.c.id).where(_successor.c.supersedes == label.c.id).exists(),
)
"""Labels that count: neither void nor superseded."""


def submit(
    connection: Connection,
    person_id: str,
    assignment_id: str,
    key: str,
    given: Submission,
    extra: bool = False,
) -> dict[str, Any]:
    """Stores a label and returns its id; the same submission again gets the same answer. With `extra` it is
    stored even if the quota was filled meanwhile, and then not exported.

    Raises Conflict if the item has a different label of this person already, or if the lease ran out and
    others have filled the quota; BadInput, Forbidden and NotHere as their names say.
    """
    row = lock_person(connection, person_id)
    if (answer := _stored_answer(connection, person_id, assignment_id, key)) is not None:
        return answer
    mine = own_assignment(connection, person_id, assignment_id)
    if mine.state == "submitted":
        return _answer_again(connection, mine, given)
    check_admitted(row)
    is_late = is_late_for_round(mine)
    if not is_late:
        _check_open(mine)
    check_acknowledged(connection, person_id, mine.kind)
    notes = check(mine.kind, given, mine.order) + [LATE] * is_late
    has_lease = mine.state in OPEN
    has_room = has_lease or mine.labels + mine.leases < mine.quota
    if not has_room and not extra:
        raise QuotaFilled(
            "quota_filled",
            "your lease ran out and others have labelled this item meanwhile; your work is a draft now, and "
            "can be stored as an extra label",
        )
    values = _label_values(mine, person_id, key, given, is_extra=not has_room)
    if row.grp == "simulated":  # they say how long they would have read
        values["active_ms"] = mine.active_ms + given.active_ms
    _insert_label(connection, values, given)
    done = {"one": mine.id, "state": "submitted", "active_ms": values["active_ms"]}
    connection.execute(CHANGE_ASSIGNMENT, done)
    if has_room:
        counts = {"one": mine.item, "labels_more": 1, "leases_more": -1 if has_lease else 0}
        connection.execute(COUNT, counts)
    return {"label": values["id"], "extra": values["extra"], "notes": notes}


def _stored_answer(
    connection: Connection, person_id: str, assignment_id: str, key: str
) -> dict[str, Any] | None:
    stored = connection.execute(STORED, {"who": person_id, "key": key}).first()
    if stored is None:
        return None
    if stored.assignment != assignment_id:
        raise Conflict("key_used", "this Idempotency-Key belongs to another item; send a new one")
    return {"label": stored.id, "extra": stored.extra, "notes": []}


def _answer_again(connection: Connection, mine: AnyRow, given: Submission) -> dict[str, Any]:
    """For a second tab, or a retry with another key: the same content gets the same answer."""
    query = sa.select(label).where(label.c.assignment == mine.id, CURRENT)
    stored = connection.execute(query).one()
    check(mine.kind, given, mine.order)
    if stored.content_sha == given.content_sha():
        return {"label": stored.id, "extra": stored.extra, "notes": []}
    raise Conflict(
        "submitted", "this item is submitted already; change it under your labels", label=stored.id
    )


def replace(
    connection: Connection, person_id: str, label_id: str, key: str, given: Submission
) -> dict[str, Any]:
    """A new label in place of an own one, until its batch closes. Raises as `submit`."""
    row = lock_person(connection, person_id)
    old = _own_label(connection, person_id, label_id)
    if (answer := _stored_answer(connection, person_id, old.assignment, key)) is not None:
        return answer
    check_admitted(row)
    _check_current(connection, old)
    mine = own_assignment(connection, person_id, old.assignment)
    _check_open(mine)
    notes = check(mine.kind, given, mine.order)
    values = _label_values(mine, person_id, key, given, is_extra=old.extra)
    values |= {"supersedes": old.id, "active_ms": old.active_ms + given.active_ms}
    _insert_label(connection, values, given)
    return {"label": values["id"], "extra": old.extra, "notes": notes}


def undo(connection: Connection, settings: LabelConfig, person_id: str, label_id: str) -> dict[str, Any]:
    """Makes an own label void and its content the draft of the item, which is leased again. Undoing twice is
    undoing once."""
    row = lock_person(connection, person_id)
    old = _own_label(connection, person_id, label_id)
    mine = own_assignment(connection, person_id, old.assignment)
    if old.voided is None:
        check_admitted(row)
        _check_current(connection, old)
        _check_open(mine)
        _void(connection, [old.id], "undone")
        draft = describe_label(connection, old)
        connection.execute(CHANGE_ASSIGNMENT, {"one": mine.id, "state": "draft", "draft": draft})
        if not old.extra:
            connection.execute(item.update().where(item.c.id == mine.item).values(labels=item.c.labels - 1))
            renew(connection, settings, own_assignment(connection, person_id, mine.id), now_ms())
        record_event(connection, "undo", person_id, old.id)
    return {"assignment": mine.id}


def void_all(connection: Connection, person_id: str, why: str) -> int:
    """Makes every label of a person void; their items wait for other people again. Returns how many."""
    query = sa.select(label.c.id, label.c.item, label.c.extra).where(label.c.person == person_id, CURRENT)
    rows = connection.execute(query.order_by(label.c.item)).all()
    for row in rows:
        _void(connection, [row.id], why)
        if not row.extra:
            values = {"labels": item.c.labels - 1, "state": "open"}
            connection.execute(item.update().where(item.c.id == row.item).values(values))
    return len(rows)


def _void(connection: Connection, labels: Sequence[str], why: str) -> None:
    values = {"voided": now_ms(), "voided_why": why}
    connection.execute(label.update().where(label.c.id.in_(labels)).values(values))


def _own_label(connection: Connection, person_id: str, label_id: str) -> AnyRow:
    query = sa.select(label).where(label.c.id == label_id, label.c.person == person_id)
    row = connection.execute(query).first()
    if row is None:
        raise NotHere("label", "this label is not yours")
    return row


def _check_current(connection: Connection, old: AnyRow) -> None:
    newer = sa.select(label.c.id).where(label.c.supersedes == old.id)
    if old.voided is not None or connection.execute(newer).first():
        raise Conflict("superseded", "this label was edited or undone already; reload the page")


def _check_open(mine: AnyRow) -> None:
    if mine.state == "skipped":
        raise Conflict("skipped", "you skipped this item; open the next one")
    if mine.batch_state != "open" or mine.item_state == "void":
        raise Forbidden("closed", "this batch is closed; nothing can be added or changed any more")


def _label_values(
    mine: AnyRow, person_id: str, key: str, given: Submission, is_extra: bool
) -> dict[str, Any]:
    now = now_ms()
    ranks = None
    if given.ranks:
        ranks = given.ranks
    return {
        "id": new_id(),
        "assignment": mine.id,
        "item": mine.item,
        "person": person_id,
        "kind": mine.kind,
        "ranks": ranks,
        "all_bad": given.all_bad,
        "strength": given.strength,
        "confidence": given.confidence,
        "comment": given.comment,
        "prompt_flags": given.prompt_flags,
        "submit_key": key,
        "content_sha": given.content_sha(),
        "submitted": now,
        "active_ms": total_active_ms(mine, given.active_ms, now),
        "wall_ms": max(0, now - mine.leased),
        "guideline": mine.guideline,
        "extra": is_extra,
    }


def _insert_label(connection: Connection, values: dict[str, Any], given: Submission) -> None:
    connection.execute(ADD_LABEL, values)
    ratings = []
    for response, one in given.ratings.items():
        ratings.append(
            {"label": values["id"], "response": response, "likert": one.likert, "flags": one.flags}
        )
    if ratings:
        connection.execute(ADD_RATINGS, ratings)
    if values["kind"] == "demonstrate":
        text = {"label": values["id"], "text": given.text, "edited_from": given.edited_from}
        connection.execute(demonstration.insert().values(text))


def ratings_of(connection: Connection, labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Likert value and flags by label and response."""
    rows: dict[str, dict[str, Any]] = {}
    for row in connection.execute(sa.select(rating).where(rating.c.label.in_(labels))):
        rows.setdefault(row.label, {})[row.response] = {"likert": row.likert, "flags": row.flags}
    return rows


def describe_label(connection: Connection, row: AnyRow) -> dict[str, Any]:
    """A label as the page sends it."""
    text = connection.execute(sa.select(demonstration).where(demonstration.c.label == row.id)).first()
    return {
        "ratings": ratings_of(connection, [row.id]).get(row.id, {}),
        "ranks": row.ranks or {},
        "all_bad": row.all_bad,
        "strength": row.strength,
        "confidence": row.confidence,
        "prompt_flags": row.prompt_flags,
        "comment": row.comment,
        "text": text.text if text else "",
        "edited_from": text.edited_from if text else None,
    }


def own_labels(connection: Connection, person_id: str, limit: int, before: int) -> list[dict[str, Any]]:
    """The person's labels that count, newest first, each with its item and whether it can be changed."""
    query = sa.select(label).where(label.c.person == person_id, label.c.submitted < before, CURRENT)
    labels = connection.execute(query.order_by(label.c.submitted.desc()).limit(limit)).all()
    rows = []
    for row in labels:
        mine = connection.execute(joined().where(assignment.c.id == row.assignment)).one()
        rows.append(
            {
                "label": row.id,
                "submitted": row.submitted,
                "extra": row.extra,
                "can_change": mine.batch_state == "open",
                "content": describe_label(connection, row),
                **describe(connection, mine),
            }
        )
    return rows
