"""What reviewers look at, and what they say: first labels that others contradict, then those whose labelers
were not sure, then a random part. A label that a reviewer rejects is not exported, and stays stored."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from label.errors import BadInput, Conflict, NotHere
from label.statistics.pair_agreement import compare
from label.store.database import AnyRow, now_ms, record_event
from label.store.items import SHARED, new_id, responses_of
from label.store.labels import CURRENT, describe_label
from label.store.tables import batch, item, label, person, review

VERDICTS = ("accept", "reject")
CONTRADICTED, UNSURE = 0.5, 3
"""Agreement with the others' pairs, and certainty of 9, from which on downward a label is looked at."""
RANDOM_PART = 20
"""One of so many other labels is looked at too."""
LATEST = 2000
"""Labels that the queue is made of."""


def queue(connection: Connection, reviewer: str, limit: int = 20) -> list[dict[str, Any]]:
    """Labels of others to look at, the most doubtful first, with the reason. Labelers have pseudonyms."""
    query = (
        sa.select(label, item.c.prompt, person.c.pseudonym, batch.c.name.label("batch_name"))
        .join(item, item.c.id == label.c.item)
        .join(batch, batch.c.id == item.c.batch)
        .join(person, person.c.id == label.c.person)
        .where(CURRENT, item.c.gold.is_(None), batch.c.purpose.not_in(SHARED), label.c.person != reviewer)
        .where(~sa.select(review.c.id).where(review.c.label == label.c.id).exists())
        .order_by(label.c.submitted.desc())
        .limit(LATEST)
    )
    rows = connection.execute(query).all()
    reasons = _reasons(connection, rows)
    chosen = sorted((row for row in rows if row.id in reasons), key=lambda row: reasons[row.id])
    return [_described(connection, row, reasons[row.id][1]) for row in chosen[:limit]]


def _reasons(connection: Connection, rows: Sequence[AnyRow]) -> dict[str, tuple[float, str]]:
    """Label -> (rank in the queue, reason)."""
    agreement = _agreement_by_item(connection, [row.item for row in rows])
    reasons: dict[str, tuple[float, str]] = {}
    for row in rows:
        share = agreement.get(row.item)
        if share is not None and share <= CONTRADICTED:
            reasons[row.id] = (share, f"labelers of this item agree in {share:.0%} of its pairs")
        elif row.confidence is not None and row.confidence <= UNSURE:
            reasons[row.id] = (1 + row.confidence / 10, f"certainty {row.confidence} of 9")
        elif int(hashlib.sha256(row.id.encode()).hexdigest(), 16) % RANDOM_PART == 0:
            reasons[row.id] = (2.0, "random part")
    return reasons


def _agreement_by_item(connection: Connection, items: Sequence[str]) -> dict[str, float]:
    query = sa.select(label.c.item, label.c.ranks).where(CURRENT, label.c.item.in_(items))
    ranks = defaultdict(list)
    for row in connection.execute(query):
        if row.ranks:
            ranks[row.item].append([row.ranks[key] for key in sorted(row.ranks)])
    shares = {}
    for name, rankings in ranks.items():
        pairs = [compare(first, second) for first, second in combinations(rankings, 2)]
        comparable = sum(one.comparable for one in pairs)
        if comparable:
            shares[name] = sum(one.agreeing for one in pairs) / comparable
    return shares


def _described(connection: Connection, row: AnyRow, reason: str) -> dict[str, Any]:
    content = describe_label(connection, row)
    responses = []
    for one in responses_of(connection, [row.item]).get(row.item, []):
        rating = content["ratings"].get(one.id, {})
        place = content["ranks"].get(one.id)
        responses.append({"text": one.text, "rank": place, **rating})
    # Best first: a reviewer checks an order.
    responses.sort(key=lambda one: one["rank"] or 0)
    return {
        "label": row.id,
        "labeler": row.pseudonym,
        "batch": row.batch_name,
        "kind": row.kind,
        "reason": reason,
        "prompt": row.prompt,
        "responses": responses,
        "all_bad": row.all_bad,
        "confidence": row.confidence,
        "comment": row.comment,
        "text": content["text"],
    }


def add_review(
    connection: Connection, reviewer: str, label_id: str, verdict: str, score: int | None, note: str
) -> None:
    """Stores what a reviewer says of a label of somebody else; the labeler reads the note. The same review
    again changes nothing. Raises NotHere, Conflict and BadInput."""
    if verdict not in VERDICTS:
        raise BadInput("verdict", f"unknown verdict {verdict!r}; there are {', '.join(VERDICTS)}")
    if verdict == "reject" and not note.strip():
        raise BadInput("note", "say why, for the labeler")
    row = connection.execute(sa.select(label.c.person).where(label.c.id == label_id)).first()
    if row is None:
        raise NotHere("label", "there is no such label")
    if row.person == reviewer:
        raise Conflict("own", "this label is your own; somebody else reviews it")
    mine = sa.select(review).where(review.c.label == label_id, review.c.reviewer == reviewer)
    stored = connection.execute(mine).first()
    if stored is not None:
        if stored.verdict != verdict:
            raise Conflict("reviewed", "you have reviewed this label already")
        return
    values = {"id": new_id(), "label": label_id, "reviewer": reviewer, "verdict": verdict, "score": score}
    connection.execute(review.insert().values({**values, "note": note, "time": now_ms()}))
    record_event(connection, "review", reviewer, label_id, verdict=verdict)


def reviews_of(connection: Connection, labels: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Verdicts and notes by label, without the reviewer."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in connection.execute(sa.select(review).where(review.c.label.in_(labels))):
        found.setdefault(row.label, []).append({"verdict": row.verdict, "note": row.note, "score": row.score})
    return found
