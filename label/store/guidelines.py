"""Guidelines: versioned texts by kind of work, which people acknowledge before they work by them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from label.errors import BadInput, Forbidden, NotHere
from label.store.database import AnyRow, now_ms, record_event
from label.store.statements import IN_FORCE
from label.store.tables import acknowledgement, guideline
from label.vocabulary import KINDS

TEMPLATES = Path(__file__).parent.parent / "texts"


def publish(connection: Connection, kind: str, text: str, author: str) -> int:
    """Publishes a new version, which everybody acknowledges before the next item of this kind. The text that
    is in force already is not published again. Returns the version."""
    if kind not in KINDS:
        raise BadInput("kind", f"unknown kind {kind!r}; there are {', '.join(KINDS)}")
    if not text.strip():
        raise BadInput("text", "the guideline is empty")
    sha, current = hashlib.sha256(text.encode()).hexdigest(), newest(connection, kind)
    if current is not None and current.sha256 == sha:
        return int(current.version)
    values = {"kind": kind, "text_md": text, "sha256": sha, "author": author, "published": now_ms()}
    insert = guideline.insert().values(values).returning(guideline.c.version)
    version = int(connection.execute(insert).scalar_one())
    record_event(connection, "guideline", author, str(version), kind=kind)
    return version


def publish_templates(connection: Connection) -> None:
    """The texts that come with the program, for kinds that have none yet."""
    for kind in KINDS:
        if newest(connection, kind) is None:
            publish(connection, kind, (TEMPLATES / f"{kind}.md").read_text(encoding="utf-8"), "template")


def newest(connection: Connection, kind: str) -> AnyRow | None:
    query = sa.select(guideline).where(guideline.c.kind == kind).order_by(guideline.c.version.desc())
    return connection.execute(query.limit(1)).first()


def versions(connection: Connection, kind: str) -> list[dict[str, Any]]:
    """All versions of a kind, the newest first, each with how many people have read it."""
    readers = (
        sa.select(sa.func.count()).where(acknowledgement.c.guideline == guideline.c.version).scalar_subquery()
    )
    query = sa.select(guideline, readers.label("readers")).where(guideline.c.kind == kind)
    rows = connection.execute(query.order_by(guideline.c.version.desc()))
    return [dict(row._mapping) for row in rows]


def get(connection: Connection, version: int) -> AnyRow:
    row = connection.execute(sa.select(guideline).where(guideline.c.version == version)).first()
    if row is None:
        raise NotHere("guideline", "there is no such version")
    return row


def acknowledge(connection: Connection, person_id: str, version: int) -> None:
    """Notes that the person has read a version; again changes nothing."""
    get(connection, version)
    mine = sa.and_(acknowledgement.c.person == person_id, acknowledgement.c.guideline == version)
    if connection.execute(sa.select(acknowledgement).where(mine)).first() is None:
        values = {"person": person_id, "guideline": version, "time": now_ms()}
        connection.execute(acknowledgement.insert().values(values))


def check_acknowledged(connection: Connection, person_id: str, kind: str) -> int | None:
    """The version in force for this kind. Raises Forbidden if the person has not read it."""
    current = connection.execute(IN_FORCE, {"who": person_id, "kind_of_work": kind}).first()
    if current is None:
        return None
    if current.read_at is None:
        raise Forbidden(
            "guideline_unread",
            f"read and acknowledge version {current.version} of the guideline first",
            version=current.version,
            kind=kind,
        )
    return int(current.version)
