"""People: invites, joining with consent, sessions, keys for programs, states, and leaving without a trace.

    screening ─► admitted ⇄ paused          an owner decides; the quality monitor may pause
        └─► rejected    any ─► left, forgotten

Secrets (invite codes, session tokens, keys) have 256 random bits and are stored as SHA-256 hashes.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import sqlalchemy as sa
from sqlalchemy import Connection

from label.config import LabelConfig
from label.errors import BadInput, Conflict, Forbidden, NotHere, Unauthorized
from label.store.assignments import DAY_MS, lock_person, revoke
from label.store.database import AnyRow, now_ms, record_event
from label.store.items import new_id
from label.store.labels import CURRENT, void_all
from label.store.screening_tables import answer, answer_rating, decision, quality, screening
from label.store.statements import OF_SESSION
from label.store.tables import invite, label, person, session
from label.vocabulary import Group, Role, State

OWN_PAUSE = "you paused yourself"
SESSION_DAYS = 30
INVITE_DAYS = 14


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Joining:
    """What somebody says on the page of an invite."""

    code: str
    name: str
    consent_version: str
    languages: Sequence[str] = ()
    sensitive_ok: Sequence[str] = ()
    key: str = ""
    """Idempotency key: a repeated request joins once."""


def create_invite(
    connection: Connection, role: str, group: str, uses: int = 1, by_person: str = "cli"
) -> str:
    """A new invite code, which cannot be read again."""
    if role not in get_args(Role):
        raise BadInput("role", f"unknown role {role!r}; there are {', '.join(get_args(Role))}")
    if group not in get_args(Group):
        raise BadInput("group", f"unknown group {group!r}; there are {', '.join(get_args(Group))}")
    code = secrets.token_urlsafe(32)
    values: dict[str, Any] = {
        "sha256": digest(code),
        "role": role,
        "grp": group,
        "uses_left": uses,
        "expires": now_ms() + INVITE_DAYS * DAY_MS,
        "by_person": by_person,
    }
    connection.execute(invite.insert().values(values))
    record_event(connection, "invite", by_person, values["sha256"][:12], role=role, group=group, uses=uses)
    return code


def join(connection: Connection, settings: LabelConfig, consent: str, given: Joining) -> tuple[str, str]:
    """Makes a person of an invite; returns the person's id and a session token. The same request again gives
    the same person a new session. `consent` is the version of the text in force.

    Raises Forbidden for an invite that is unknown, used up or expired, and Conflict for consent to another
    version of the text.
    """
    join_key = digest(f"{given.code}:{given.key}") if given.key else None
    if join_key:
        there = connection.execute(sa.select(person.c.id).where(person.c.join_key == join_key)).first()
        if there:
            return there.id, open_session(connection, there.id)
    if given.consent_version != consent:
        raise Conflict("consent", "the text to consent to has changed; reload the page and read it again")
    is_valid = sa.and_(invite.c.sha256 == digest(given.code), invite.c.expires > now_ms())
    row = connection.execute(sa.select(invite).where(is_valid).with_for_update()).first()
    if row is None or row.uses_left < 1:
        raise Forbidden("invite", "this invite is unknown, used up or expired; ask for a new one")
    connection.execute(
        invite.update().where(invite.c.sha256 == row.sha256).values(uses_left=invite.c.uses_left - 1)
    )
    # Held-out labelers are admitted without a look at their answers: their labels only evaluate.
    is_admitted = row.role != "labeler" or row.grp == "heldout" or settings.screening.auto_admit
    values = {
        "id": new_id(),
        "name": given.name,
        "role": row.role,
        "grp": row.grp,
        "state": "admitted" if is_admitted else "screening",
        "pseudonym": f"labeler-{secrets.token_hex(4)}",
        "consent_version": consent,
        "consent_at": now_ms(),
        "languages": list(given.languages),
        "sensitive_ok": list(given.sensitive_ok),
        "join_key": join_key,
        "created": now_ms(),
    }
    connection.execute(person.insert().values(values))
    record_event(connection, "join", values["id"], None, role=row.role, group=row.grp, consent=consent)
    return values["id"], open_session(connection, values["id"])


def open_session(connection: Connection, person_id: str) -> str:
    token, now = secrets.token_urlsafe(32), now_ms()
    values = {
        "sha256": digest(token),
        "person": person_id,
        "created": now,
        "expires": now + SESSION_DAYS * DAY_MS,
    }
    connection.execute(session.insert().values(values))
    return token


def create_key(connection: Connection, person_id: str) -> str:
    """A key for programs that act as this person; one made before stops working."""
    key = f"label-{secrets.token_urlsafe(32)}"
    connection.execute(person.update().where(person.c.id == person_id).values(key_sha256=digest(key)))
    record_event(connection, "key", person_id)
    return key


def by_session(connection: Connection, token: str) -> AnyRow:
    """The person of a session. Raises Unauthorized."""
    row = connection.execute(OF_SESSION, {"sha": digest(token), "now": now_ms()}).first()
    if row is None:
        raise Unauthorized("session", "you are not signed in; open your invite link, or ask for a new one")
    return row


def by_key(connection: Connection, key: str) -> AnyRow:
    """The person of a key. Raises Unauthorized."""
    row = connection.execute(sa.select(person).where(person.c.key_sha256 == digest(key))).first()
    if row is None:
        raise Unauthorized("key", "unknown key; an owner makes one with `hero label people RUN --key PERSON`")
    return row


def end_session(connection: Connection, token: str) -> None:
    connection.execute(session.delete().where(session.c.sha256 == digest(token)))


def set_state(
    connection: Connection,
    person_id: str,
    state: str,
    by_person: str,
    why: str,
    evidence: dict[str, Any] | None = None,
) -> None:
    """Admits, pauses, rejects or lets go; leases of whoever may not work end, labels stay. Labels that were
    held back stay so if the person leaves, until an owner admits."""
    if state not in get_args(State) or state == "forgotten":
        raise BadInput(
            "state", f"unknown state {state!r}; there are admitted, paused, rejected, left, screening"
        )
    row = lock_person(connection, person_id)
    if row.state == "forgotten":
        raise Conflict("forgotten", "this person's data was removed; invite again")
    new = {"state": state, "state_why": why, "held_back": state != "admitted" and _is_held(row)}
    connection.execute(person.update().where(person.c.id == person_id).values(new))
    if state != "admitted":
        revoke(connection, person_id)
    values = {
        "person": person_id,
        "what": state,
        "by_person": by_person,
        "evidence": {"before": row.state, "why": why, **(evidence or {})},
        "time": now_ms(),
    }
    connection.execute(decision.insert().values(values))


def _is_held(row: AnyRow) -> bool:
    """Whether the labels are held back whatever the next state is. A pause of one's own does not count."""
    is_paused = row.state == "paused" and row.state_why != OWN_PAUSE
    return bool(row.held_back) or is_paused or row.state in ("screening", "rejected")


def forget(connection: Connection, person_id: str, keep_labels: bool, by_person: str) -> int:
    """Removes name, answers, sessions, keys and comments of a person. The labels stay under a pseudonym that
    leads to nobody, or become void. Returns how many became void."""
    before = lock_person(connection, person_id)
    revoke(connection, person_id)
    voided = 0
    if not keep_labels:
        voided = void_all(connection, person_id, "withdrawn")
    for table in (session, answer, answer_rating, screening, quality):
        connection.execute(table.delete().where(table.c.person == person_id))
    connection.execute(label.update().where(label.c.person == person_id).values(comment=""))
    values: dict[str, Any] = {
        "name": "",
        "state": "forgotten",
        "state_why": "",
        "held_back": _is_held(before),
        "key_sha256": None,
        "join_key": None,
        "languages": [],
        "sensitive_ok": [],
        "pseudonym": f"gone-{secrets.token_hex(4)}",
    }
    connection.execute(person.update().where(person.c.id == person_id).values(values))
    evidence = {"labels_kept": keep_labels, "voided": voided}
    row = {"person": person_id, "what": "forgotten", "by_person": by_person, "evidence": evidence}
    connection.execute(decision.insert().values({**row, "time": now_ms()}))
    return voided


def resolve(connection: Connection, name: str) -> str:
    """The id of the person with this id, pseudonym or name. Raises NotHere."""
    matches = sa.or_(person.c.id == name, person.c.pseudonym == name, person.c.name == name)
    rows = connection.execute(sa.select(person.c.id).where(matches)).all()
    if len(rows) != 1:
        raise NotHere("person", f"{len(rows)} people are called {name!r}; give the id or the pseudonym")
    return str(rows[0].id)


def list_people(connection: Connection) -> list[dict[str, Any]]:
    """Everybody with the number of current labels; keys and hashes are left out."""
    counts = (
        sa.select(
            label.c.person, sa.func.count().label("labels"), sa.func.max(label.c.submitted).label("last")
        )
        .where(CURRENT)
        .group_by(label.c.person)
        .subquery()
    )
    columns = [person.c[name] for name in PERSON_COLUMNS]
    query = (
        sa.select(*columns, sa.func.coalesce(counts.c.labels, 0).label("labels"), counts.c.last)
        .select_from(person.outerjoin(counts, counts.c.person == person.c.id))
        .order_by(person.c.created)
    )
    return [dict(row._mapping) for row in connection.execute(query)]


PERSON_COLUMNS = (
    "id",
    "name",
    "role",
    "grp",
    "state",
    "state_why",
    "pseudonym",
    "languages",
    "sensitive_ok",
    "created",
)
