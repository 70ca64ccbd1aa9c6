"""Tables of the workplace. Times are UTC milliseconds since 1970; ids are random, so that none tells in which
order, or from which policy, anything came.

    batch ─► item ─► response          what is labelled, and from which policy each response is
    person ─► assignment ─► label ─► rating, demonstration, review
    event                              append only: who did what, and why
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    text,
)

SCHEMA_VERSION = 2
"""Grows with every change of a table; `MIGRATIONS` has the statements that lead to each version."""
MIGRATIONS: dict[int, tuple[str, ...]] = {
    2: ("ALTER TABLE person ADD COLUMN held_back BOOLEAN NOT NULL DEFAULT FALSE",),
}
"""Version -> statements from the version before it, after missing tables were made. Forward only."""

metadata = MetaData()
serial_id = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up integers only


def reference(name: str, target: str, index: bool = False) -> Column[str]:
    return Column(name, Text, ForeignKey(target), nullable=False, index=index)


meta = Table("meta", metadata, Column("name", Text, primary_key=True), Column("value", Text, nullable=False))

person = Table(
    "person",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("grp", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("state_why", Text, nullable=False, default=""),
    Column("held_back", Boolean, nullable=False, default=False, server_default=text("false")),
    Column("key_sha256", Text, unique=True),
    Column("pseudonym", Text, nullable=False, unique=True),
    Column("consent_version", Text, nullable=False),
    Column("consent_at", BigInteger, nullable=False),
    Column("languages", JSON, nullable=False),
    Column("sensitive_ok", JSON, nullable=False),
    Column("join_key", Text, unique=True),
    Column("created", BigInteger, nullable=False),
)
invite = Table(
    "invite",
    metadata,
    Column("sha256", Text, primary_key=True),
    Column("role", Text, nullable=False),
    Column("grp", Text, nullable=False),
    Column("uses_left", Integer, CheckConstraint("uses_left >= 0"), nullable=False),
    Column("expires", BigInteger, nullable=False),
    Column("by_person", Text, nullable=False),
)
session = Table(
    "session",
    metadata,
    Column("sha256", Text, primary_key=True),
    reference("person", "person.id"),
    Column("created", BigInteger, nullable=False),
    Column("expires", BigInteger, nullable=False),
)
guideline = Table(
    "guideline",
    metadata,
    Column("version", serial_id, primary_key=True, autoincrement=True),
    Column("kind", Text, nullable=False),
    Column("text_md", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("author", Text, nullable=False),
    Column("published", BigInteger, nullable=False),
)
acknowledgement = Table(
    "acknowledgement",
    metadata,
    reference("person", "person.id"),
    Column("guideline", serial_id, ForeignKey("guideline.version"), nullable=False),
    Column("time", BigInteger, nullable=False),
    PrimaryKeyConstraint("person", "guideline"),
)
batch = Table(
    "batch",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("round", Integer, nullable=False, default=0),
    Column("purpose", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("quota", Integer, nullable=False),
    Column("priority", Integer, nullable=False, default=0),
    Column("state", Text, nullable=False),
    Column("created", BigInteger, nullable=False),
)
item = Table(
    "item",
    metadata,
    Column("id", Text, primary_key=True),
    Column("position", BigInteger, nullable=False),
    reference("batch", "batch.id"),
    Column("kind", Text, nullable=False),
    Column("content_sha", Text, nullable=False),
    Column("prompt", JSON, nullable=False),
    Column("row", JSON),
    Column("quota", Integer, nullable=False),
    Column("labels", Integer, nullable=False, default=0),
    Column("leases", Integer, nullable=False, default=0),
    Column("priority", Integer, nullable=False, default=0),
    Column("gold", Text),
    Column("repeat_of", Text),
    Column("reserved_for", Text),
    Column("author", Text),
    Column("state", Text, nullable=False),
    UniqueConstraint("batch", "content_sha"),
    # The promise of exact quotas, kept by the database itself.
    CheckConstraint("labels >= 0 AND leases >= 0 AND labels + leases <= quota", name="quota_is_kept"),
)
Index(
    "item_waiting",
    item.c.priority.desc(),
    item.c.position,
    sqlite_where=text("state = 'open' AND labels + leases < quota"),
    postgresql_where=text("state = 'open' AND labels + leases < quota"),
)
response = Table(
    "response",
    metadata,
    Column("id", Text, primary_key=True),
    reference("item", "item.id", index=True),
    Column("position", Integer, nullable=False),
    Column("text", Text, nullable=False),
    Column("ended", Boolean, nullable=False),
    Column("policy", JSON),
    Column("decoding", JSON),
    Column("reward", Float),
)
gold = Table(
    "gold",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("answer", JSON, nullable=False),
    Column("explanation", Text, nullable=False),
    Column("author", Text, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("retired", BigInteger),
)
assignment = Table(
    "assignment",
    metadata,
    Column("id", Text, primary_key=True),
    reference("item", "item.id"),
    reference("person", "person.id"),
    Column("state", Text, nullable=False),
    Column("order", JSON, nullable=False),
    Column("leased", BigInteger, nullable=False),
    Column("expires", BigInteger, nullable=False),
    Column("active_ms", BigInteger, nullable=False, default=0),
    Column("draft", JSON),
    Column("skip_reason", Text),
    Column("guideline", serial_id),
    UniqueConstraint("item", "person"),
)
Index("assignment_of_person", assignment.c.person, assignment.c.state)
Index(
    "assignment_expiry",
    assignment.c.expires,
    sqlite_where=text("state IN ('leased', 'draft')"),
    postgresql_where=text("state IN ('leased', 'draft')"),
)
label = Table(
    "label",
    metadata,
    Column("id", Text, primary_key=True),
    reference("assignment", "assignment.id", index=True),
    reference("item", "item.id", index=True),
    reference("person", "person.id"),
    Column("kind", Text, nullable=False),
    Column("ranks", JSON),
    Column("all_bad", Boolean, nullable=False),
    Column("strength", Integer),
    Column("confidence", Integer),
    Column("comment", Text, nullable=False),
    Column("prompt_flags", JSON, nullable=False),
    Column("supersedes", Text, ForeignKey("label.id"), unique=True),
    Column("submit_key", Text, nullable=False),
    Column("content_sha", Text, nullable=False),
    Column("submitted", BigInteger, nullable=False),
    Column("active_ms", BigInteger, nullable=False),
    Column("wall_ms", BigInteger, nullable=False),
    Column("guideline", serial_id),
    Column("extra", Boolean, nullable=False),
    Column("voided", BigInteger),
    Column("voided_why", Text),
    UniqueConstraint("person", "submit_key"),
)
Index("label_of_person", label.c.person, label.c.submitted)
rating = Table(
    "rating",
    metadata,
    reference("label", "label.id"),
    reference("response", "response.id"),
    Column("likert", Integer, CheckConstraint("likert BETWEEN 1 AND 7")),
    Column("flags", JSON, nullable=False),
    PrimaryKeyConstraint("label", "response"),
)
demonstration = Table(
    "demonstration",
    metadata,
    Column("label", Text, ForeignKey("label.id"), primary_key=True),
    Column("text", Text, nullable=False),
    Column("edited_from", Text, ForeignKey("response.id")),
)
review = Table(
    "review",
    metadata,
    Column("id", Text, primary_key=True),
    reference("label", "label.id", index=True),
    reference("reviewer", "person.id"),
    Column("verdict", Text, nullable=False),
    Column("score", Integer),
    Column("note", Text, nullable=False),
    Column("time", BigInteger, nullable=False),
    UniqueConstraint("label", "reviewer"),
)
event = Table(
    "event",
    metadata,
    Column("seq", serial_id, primary_key=True, autoincrement=True),
    Column("time", BigInteger, nullable=False),
    Column("person", Text),
    Column("what", Text, nullable=False),
    Column("subject", Text),
    Column("detail", JSON),
)
