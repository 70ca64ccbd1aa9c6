"""People as an owner sees them: with the scores of the questionnaire and what it proposes, the figures of
their work with the reasons that speak against it, and the decisions so far."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from label.store import people, screening
from label.store.screening_tables import answer, decision, quality
from label.workplace import Workplace


def team(connection: Connection, place: Workplace) -> list[dict[str, Any]]:
    """Everybody, with the latest look at the work and, in screening, the proposal."""
    figures = {row.person: row for row in connection.execute(sa.select(quality))}
    rows = people.list_people(connection)
    for row in rows:
        look = figures.get(row["id"])
        row["quality"] = look and {"looked": look.time, "labels": look.labels, **look.figures}
        row["screening"] = None
        if row["state"] == "screening" and place.settings.screening.required:
            row["screening"] = screened(connection, place, row["id"])
    return rows


def screened(connection: Connection, place: Workplace, person_id: str) -> dict[str, Any]:
    """Scores, reasons and proposal; no proposal before everything is answered."""
    thresholds = place.settings.screening.thresholds
    progress = screening.progress(connection, place.questionnaire, person_id)
    result = screening.evaluate(connection, place.questionnaire, thresholds, person_id).to_json()
    if progress["next"] is not None:
        result["proposal"] = None
    return {"answered": progress["answered"], "total": progress["total"], **result}


def dossier(connection: Connection, place: Workplace, person_id: str) -> dict[str, Any]:
    """One person with scores of the questionnaire, texts that were written for it, and all decisions."""
    row = next(one for one in team(connection, place) if one["id"] == person_id)
    texts = {one.id: one.content["prompt"] for one in place.questionnaire.of_section("write")}
    written = sa.select(answer).where(answer.c.person == person_id, answer.c.question.in_(list(texts)))
    decisions = sa.select(decision).where(decision.c.person == person_id).order_by(decision.c.id.desc())
    return {
        **row,
        "screening": screened(connection, place, person_id),
        "demonstrations": [
            {"prompt": texts[one.question], "text": one.value} for one in connection.execute(written)
        ],
        "decisions": [dict(one._mapping) for one in connection.execute(decisions)],
    }
