"""Routes of the questionnaire for people in screening, and of the reviewers who rate its demonstrations."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import Field, JsonValue, StrictInt

from label.api.access import EVERYBODY, STAFF, place_of, requires
from label.store import screening
from label.store.database import AnyRow
from label.submission import Body, CleanText
from label.workplace import Workplace

router = APIRouter(prefix="/api")
Person = Annotated[AnyRow, Depends(requires(*EVERYBODY))]
Staff = Annotated[AnyRow, Depends(requires(*STAFF))]
Place = Annotated[Workplace, Depends(place_of)]


class Answer(Body):
    question: Annotated[CleanText, Field(max_length=40)]
    value: JsonValue
    """true or false, a number, a text, or places in the order shown, as the section asks."""


class DemonstrationRating(Body):
    id: Annotated[CleanText, Field(max_length=80)]
    score: Annotated[StrictInt, Field(ge=1, le=7)]


@router.get("/screen")
def screen(person: Person, place: Place) -> dict[str, Any]:
    """The next question, and how many are answered. Answers can be given over several days."""
    if person.state != "screening" or not place.settings.screening.required:
        return {"state": person.state, "total": 0, "answered": 0, "next": None}
    with place.database.read() as connection:
        return {
            "state": person.state,
            **screening.progress(connection, place.questionnaire, person.id),
        }


@router.post("/screen/answers")
def answer(person: Person, place: Place, body: Answer) -> dict[str, Any]:
    """Stores an answer, which is final, and gives the next question."""
    limits = place.settings.screening.thresholds
    with place.database.write() as connection:
        screening.save_answer(connection, place.questionnaire, limits, person.id, body.question, body.value)
        return {"state": person.state, **screening.progress(connection, place.questionnaire, person.id)}


@router.get("/demonstrations")
def demonstrations(reviewer: Staff, place: Place) -> dict[str, Any]:
    """Demonstrations of people in screening that this reviewer can rate."""
    raters = place.settings.screening.thresholds.raters
    with place.database.read() as connection:
        waiting = screening.unrated_demonstrations(connection, place.questionnaire, reviewer.id, raters)
    return {"demonstrations": waiting}


@router.post("/demonstrations")
def rate(reviewer: Staff, place: Place, body: DemonstrationRating) -> dict[str, int]:
    """Rates one from 1 to 7."""
    limits = place.settings.screening.thresholds
    with place.database.write() as connection:
        screening.rate_demonstration(
            connection, place.questionnaire, limits, reviewer.id, body.id, body.score
        )
    return {"score": body.score}
