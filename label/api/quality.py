"""Routes of quality: reviews, gold items, figures of the team, the log."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import sqlalchemy as sa
from fastapi import APIRouter, Depends, Query
from pydantic import Field, StrictInt
from sqlalchemy import Connection

from label.api.access import OWNERS, STAFF, place_of, requires
from label.monitoring import judgments
from label.quality.team import team_quality
from label.store import gold_items, reviews
from label.store.database import AnyRow
from label.store.screening_tables import decision
from label.store.tables import event, label, person
from label.submission import Body, CleanText, Identity
from label.workplace import Workplace

router = APIRouter(prefix="/api")
Owner = Annotated[AnyRow, Depends(requires(*OWNERS))]
Staff = Annotated[AnyRow, Depends(requires(*STAFF))]
Place = Annotated[Workplace, Depends(place_of)]
DRAWS, LATEST = 300, 4000
"""Bootstrap draws, and latest rankings, of the figures on the page of quality."""


class Review(Body):
    label: Identity
    verdict: CleanText
    """accept or reject."""
    score: Annotated[StrictInt, Field(ge=1, le=7)] | None = None
    note: Annotated[CleanText, Field(max_length=2000)] = ""
    """The labeler reads it."""


class Promotion(Body):
    item: Identity
    explanation: Annotated[CleanText, Field(min_length=1, max_length=5000)]


@router.get("/reviews")
def review_queue(reviewer: Staff, place: Place) -> dict[str, Any]:
    """Labels of others to look at, the most doubtful first."""
    with place.database.read() as connection:
        return {"labels": reviews.queue(connection, reviewer.id)}


@router.post("/reviews")
def review(reviewer: Staff, place: Place, body: Review) -> dict[str, str]:
    """Accepts or rejects a label; a rejected one is not exported."""
    with place.database.write() as connection:
        reviews.add_review(connection, reviewer.id, body.label, body.verdict, body.score, body.note)
    return {"verdict": body.verdict}


@router.get("/quality")
def quality(_: Staff, place: Place) -> dict[str, Any]:
    """Agreement and strengths of policies with intervals, over the latest rankings of people whose labels
    count."""
    with place.database.read() as connection:
        state = _state_of_labels(connection)
    if place.figures is None or place.figures[0] != state:
        place.figures = state, team_figures(place)
    return place.figures[1]


def _state_of_labels(connection: Connection) -> tuple[Any, ...]:
    """Differs whenever the figures may: they take seconds, and a page is opened often."""
    count = sa.func.count()
    labels = sa.select(count, sa.func.max(label.c.submitted), sa.func.count(label.c.voided))
    decisions = sa.select(count).select_from(decision)
    return (*connection.execute(labels).one(), connection.execute(decisions).scalar_one())


def team_figures(place: Workplace, draws: int = DRAWS) -> dict[str, Any]:
    with place.database.read() as connection:
        query = sa.select(person.c.pseudonym).where(
            person.c.state.in_(("admitted", "left", "forgotten")), person.c.held_back.is_(False)
        )
        counted = set(connection.execute(query).scalars())
        latest = judgments(connection, limit=LATEST)
    counting = [one for one in latest if one.labeler in counted]
    figures = team_quality(counting, np.random.default_rng(0), draws)
    return {"rankings": len(counting), "labelers": len({one.labeler for one in counting}), **figures}


@router.get("/gold")
def list_gold(_: Owner, place: Place) -> dict[str, Any]:
    """Gold items with how people did on them, and items that could become gold."""
    with place.database.read() as connection:
        return {
            "gold": gold_items.list_gold(connection),
            "suggestions": gold_items.suggestions(connection),
        }


@router.post("/gold")
def promote(owner: Owner, place: Place, body: Promotion) -> dict[str, str]:
    """Makes a gold item of one on which everybody agrees."""
    with place.database.write() as connection:
        return {"gold": gold_items.promote(connection, body.item, body.explanation, owner.id)}


@router.post("/gold/{gold}/retire")
def retire(owner: Owner, place: Place, gold: Identity) -> dict[str, str]:
    """Takes a gold item out of work and out of the figures."""
    with place.database.write() as connection:
        gold_items.retire(connection, gold, owner.id)
    return {"gold": gold}


@router.get("/events")
def events(_: Owner, place: Place, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> dict[str, Any]:
    """What happened, the latest first."""
    with place.database.read() as connection:
        rows = connection.execute(sa.select(event).order_by(event.c.seq.desc()).limit(limit))
        return {"events": [dict(row._mapping) for row in rows]}
