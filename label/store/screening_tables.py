"""Tables about people: their answers to the questionnaire, the scores of it, the latest look at their work,
and the decisions about them (append only)."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Integer,
    PrimaryKeyConstraint,
    Table,
    Text,
)

from label.store.tables import metadata, reference, serial_id

answer = Table(
    "answer",
    metadata,
    reference("person", "person.id"),
    Column("attempt", Integer, nullable=False),
    Column("question", Text, nullable=False),
    Column("value", JSON, nullable=False),
    Column("time", BigInteger, nullable=False),
    PrimaryKeyConstraint("person", "attempt", "question"),
)
answer_rating = Table(
    "answer_rating",
    metadata,
    reference("person", "person.id"),
    Column("attempt", Integer, nullable=False),
    Column("question", Text, nullable=False),
    reference("reviewer", "person.id"),
    Column("score", Integer, CheckConstraint("score BETWEEN 1 AND 7"), nullable=False),
    Column("time", BigInteger, nullable=False),
    PrimaryKeyConstraint("person", "attempt", "question", "reviewer"),
)
"""What reviewers think of a demonstration of the questionnaire."""
screening = Table(
    "screening",
    metadata,
    reference("person", "person.id"),
    Column("attempt", Integer, nullable=False),
    Column("criterion", Text, nullable=False),
    Column("value", Float),
    Column("n", Integer, nullable=False),
    Column("low", Float),
    Column("high", Float),
    Column("threshold", Float),
    Column("passed", Boolean),
    Column("time", BigInteger, nullable=False),
    PrimaryKeyConstraint("person", "attempt", "criterion"),
)
quality = Table(
    "quality",
    metadata,
    Column("person", Text, ForeignKey("person.id"), primary_key=True),
    Column("labels", Integer, nullable=False),
    Column("gold_share", Float, nullable=False),
    Column("figures", JSON, nullable=False),
    Column("time", BigInteger, nullable=False),
)
"""The latest look at a person's work (`label.monitoring`)."""
decision = Table(
    "decision",
    metadata,
    Column("id", serial_id, primary_key=True, autoincrement=True),
    reference("person", "person.id"),
    Column("what", Text, nullable=False),
    Column("by_person", Text, nullable=False),
    Column("evidence", JSON, nullable=False),
    Column("time", BigInteger, nullable=False),
)
