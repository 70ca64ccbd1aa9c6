"""Labels as rows that training reads: rankings (`RankingRecord`) and demonstrations, one JSON object a line.

Gold, calibration, repeated, void and extra labels never enter, nor those of people who are paused, until an
owner decides: those are counted as held back.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from common.errors import UserError
from common.files import write_json, write_jsonl
from label.store.database import AnyRow, Database
from label.store.items import responses_of
from label.store.labels import CURRENT, ratings_of
from label.store.tables import assignment, batch, demonstration, guideline, item, label, person, review

CHUNK = 500
TRAINING_GROUPS = ("training", "simulated")
"""Groups whose labels train. Those of `heldout` and `public` are exported by name only."""


@dataclass
class Exported:
    """What an export holds, and what it left out."""

    rankings: list[dict[str, Any]] = field(default_factory=list)
    demonstrations: list[dict[str, Any]] = field(default_factory=list)
    held_back: int = 0
    """Labels of people who are paused, rejected or in screening, or were so when they left."""
    rejected: int = 0
    """Labels that a reviewer rejected."""
    all_bad: int = 0
    """Rankings whose responses were all called bad."""


def export(
    connection: Connection, groups: Sequence[str] = TRAINING_GROUPS, batches: Sequence[str] = ()
) -> Exported:
    """The labels that count, in the order of items and then of submission. `batches` are names; empty: all
    with purpose train or demonstrate. Raises UserError for an unknown batch."""
    for name in batches:
        if connection.execute(sa.select(batch.c.id).where(batch.c.name == name)).first() is None:
            raise UserError(f"there is no batch named {name}")
    exported = Exported()
    query = _labels(groups, batches)
    counted = sa.and_(person.c.state.in_(_COUNTED), person.c.held_back.is_(False))
    exported.held_back = _count(connection, query.where(~counted))
    exported.rejected = _count(connection, query.where(counted, _REJECTED))
    rows = connection.execute(query.where(counted, ~_REJECTED)).all()
    for start in range(0, len(rows), CHUNK):
        for row, content in _with_content(connection, rows[start : start + CHUNK]):
            if row.kind == "demonstrate":
                exported.demonstrations.append(content)
            else:
                exported.rankings.append(content)
                exported.all_bad += row.all_bad
    return exported


_COUNTED = ("admitted", "left", "forgotten")
_REJECTED = sa.select(review.c.id).where(review.c.label == label.c.id, review.c.verdict == "reject").exists()


def _count(connection: Connection, query: sa.Select[Any]) -> int:
    return int(connection.execute(sa.select(sa.func.count()).select_from(query.subquery())).scalar_one())


def _labels(groups: Sequence[str], batches: Sequence[str]) -> sa.Select[Any]:
    people = [person.c.pseudonym, person.c.grp, person.c.consent_version]
    items = [item.c.prompt, item.c.row]
    query = (
        sa.select(label, *people, *items, batch.c.name.label("batch_name"), batch.c.round)
        .join(person, person.c.id == label.c.person)
        .join(item, item.c.id == label.c.item)
        .join(batch, batch.c.id == item.c.batch)
        .where(CURRENT, label.c.extra.is_(False), item.c.gold.is_(None), item.c.repeat_of.is_(None))
        .where(item.c.state != "void", person.c.grp.in_(groups))
        .order_by(item.c.position, item.c.id, label.c.submitted, label.c.id)
    )
    if batches:
        return query.where(batch.c.name.in_(batches), batch.c.purpose.not_in(("gold", "screening")))
    return query.where(batch.c.purpose.in_(("train", "demonstrate")))


def _with_content(connection: Connection, rows: Sequence[AnyRow]) -> Iterator[tuple[AnyRow, dict[str, Any]]]:
    responses = responses_of(connection, sorted({row.item for row in rows}))
    ratings = ratings_of(connection, [row.id for row in rows])
    orders = _orders(connection, [row.assignment for row in rows])
    texts = sa.select(demonstration).where(demonstration.c.label.in_([row.id for row in rows]))
    written = {row.label: row for row in connection.execute(texts)}
    for row in rows:
        common = _common(row)
        if row.kind == "demonstrate":
            text = written[row.id]
            yield row, {"prompt": row.prompt, "response": text.text, **common}
            continue
        order = orders[row.assignment]
        ranking = _ranking(row, responses[row.item], ratings.get(row.id, {}), order)
        yield row, {"prompt": row.prompt, **ranking, **common}


def _orders(connection: Connection, assignments: Sequence[str]) -> dict[str, list[str]]:
    query = sa.select(assignment.c.id, assignment.c.order).where(assignment.c.id.in_(assignments))
    return {row.id: row.order for row in connection.execute(query)}


def _ranking(
    row: AnyRow, responses: Sequence[AnyRow], ratings: dict[str, Any], order: Sequence[str]
) -> dict[str, Any]:
    ids = [one.id for one in responses]
    places = [ids.index(response) for response in order]
    likert = [ratings.get(one, {}).get("likert") for one in ids]
    strength = row.strength
    # People say it of the response that was shown first, rows of the first one in the row.
    if strength is not None and places[0] != 0:
        strength = -strength
    values: dict[str, Any] = {
        "responses": [one.text for one in responses],
        "ended": [one.ended for one in responses],
        "ranks": [row.ranks[one] for one in ids],
        "likert": likert if any(value is not None for value in likert) else None,
        "flags": [ratings.get(one, {}).get("flags", []) for one in ids],
        "all_bad": row.all_bad,
        "strength": strength,
        "order": places,
    }
    for key in ("policy", "decoding"):
        known = [one._mapping[key] for one in responses]
        if all(value is not None for value in known):
            values[key] = known
    if row.row is not None:
        values["row"] = row.row
    return values


def _common(row: AnyRow) -> dict[str, Any]:
    return {
        "prompt_flags": row.prompt_flags,
        "confidence": row.confidence,
        "comment": row.comment,
        "labeler": row.pseudonym,
        "group": row.grp,
        "round": row.round,
        "batch": row.batch_name,
        "item": row.item,
        "label": row.id,
        "active_ms": row.active_ms,
        "guideline": row.guideline,
        "consent": row.consent_version,
        "time": row.submitted / 1000,
    }


def write_export(
    database: Database,
    folder: Path,
    name: str,
    groups: Sequence[str] = TRAINING_GROUPS,
    batches: Sequence[str] = (),
) -> dict[str, Any]:
    """Writes FOLDER/NAME.jsonl, FOLDER/demonstrations-NAME.jsonl if there are any, and FOLDER/NAME.json,
    which describes them; returns the description. Raises UserError for a name that is no file name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(f"export name {name!r}: expected letters, digits, dots and dashes")
    with database.read() as connection:
        exported = export(connection, groups, batches)
        versions = connection.execute(
            sa.select(guideline.c.version, guideline.c.kind, guideline.c.sha256)
        ).all()
    files = {}
    for file, rows in (
        (f"{name}.jsonl", exported.rankings),
        (f"demonstrations-{name}.jsonl", exported.demonstrations),
    ):
        if rows:
            write_jsonl(folder / file, rows)
            files[file] = {
                "rows": len(rows),
                "sha256": hashlib.sha256((folder / file).read_bytes()).hexdigest(),
            }
    description = {
        "files": files,
        "held_back": exported.held_back,
        "rejected": exported.rejected,
        "all_bad": exported.all_bad,
        "groups": list(groups),
        "batches": list(batches),
        "guidelines": [dict(row._mapping) for row in versions],
    }
    write_json(folder / f"{name}.json", description)
    return description
