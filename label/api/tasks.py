"""Routes of the work: next item, heartbeat, draft, skip, submit, edit, undo. Everybody sees the own only."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Depends, Header, Query, Response
from pydantic import Field, StrictBool, StrictInt

from label.api.access import EVERYBODY, place_of, requires
from label.errors import Forbidden
from label.monitoring import is_look_due, look
from label.store import assignments, labels, reviews, screening
from label.store.database import AnyRow
from label.submission import Body, CleanText, Identity, Submission
from label.vocabulary import KINDS, Kind
from label.workplace import Workplace

router = APIRouter(prefix="/api")
Person = Annotated[AnyRow, Depends(requires(*EVERYBODY))]
Place = Annotated[Workplace, Depends(place_of)]
Key = Annotated[str, Header(alias="Idempotency-Key", min_length=8, max_length=100, pattern="^[!-~]+$")]
Delta = Annotated[StrictInt, Field(ge=0, le=10**9)]


class NextRequest(Body):
    kinds: list[Kind] = Field([])
    """Kinds of work to choose from; empty: all."""


class Beat(Body):
    active_ms: Delta = 0
    """Milliseconds at work since the last message."""


class Draft(Body):
    content: Submission


class Skip(Body):
    reason: CleanText
    """A name of `vocabulary.SKIP_REASONS`."""


class Submitted(Submission):
    extra: StrictBool = False
    """Store it even if others have filled the quota."""


@router.post("/next", response_model=None)
def next_item(person: Person, place: Place, body: NextRequest) -> dict[str, Any] | Response:
    """The item that is open already, or a new one; 204 if nothing waits."""
    if person.state == "screening":
        raise _screening_refusal(place, person)
    with place.database.write() as connection:
        chosen = assignments.next_assignment(
            connection, place.settings, person.id, body.kinds or KINDS, assignments.system_rng()
        )
    return Response(status_code=204) if chosen is None else chosen


def _screening_refusal(place: Workplace, person: AnyRow) -> Forbidden:
    """Says what a person in screening can do: answer questions, or wait for the owner."""
    questions = 0
    if place.settings.screening.required:
        with place.database.read() as connection:
            progress = screening.progress(connection, place.questionnaire, person.id)
        questions = progress["total"] - progress["answered"]
    message = assignments.STATES["screening"]
    if questions:
        message = f"{questions} questions come before the first item; answer them on the page of questions"
    return Forbidden("state_screening", message, questions=questions)


@router.post("/assignments/{assignment}/beat")
def beat(person: Person, place: Place, assignment: Identity, body: Beat) -> dict[str, int]:
    """Renews the lease."""
    with place.database.write() as connection:
        expires = assignments.save_progress(connection, place.settings, person.id, assignment, body.active_ms)
    return {"expires": expires}


@router.post("/assignments/{assignment}/draft")
def draft(person: Person, place: Place, assignment: Identity, body: Draft) -> dict[str, int]:
    """Keeps unfinished work, and renews the lease."""
    content = body.content.model_dump(exclude={"active_ms"})
    with place.database.write() as connection:
        expires = assignments.save_progress(
            connection, place.settings, person.id, assignment, body.content.active_ms, content
        )
    return {"expires": expires}


@router.post("/assignments/{assignment}/skip")
def skip(person: Person, place: Place, assignment: Identity, body: Skip) -> dict[str, str]:
    with place.database.write() as connection:
        assignments.skip(connection, person.id, assignment, body.reason)
    return {"state": "skipped"}


@router.post("/assignments/{assignment}/submit")
def submit(
    person: Person, place: Place, assignment: Identity, key: Key, body: Submitted, after: BackgroundTasks
) -> dict[str, Any]:
    """Stores the label. The same key gets the same answer again."""
    given = Submission.model_validate(body.model_dump(exclude={"extra"}))
    try:
        with place.database.write() as connection:
            stored = labels.submit(connection, person.id, assignment, key, given, body.extra)
    except labels.QuotaFilled:
        with place.database.write() as connection:
            content = given.model_dump(exclude={"active_ms"})
            assignments.save_progress(connection, place.settings, person.id, assignment, 0, content)
        raise
    # Once the person has the answer: nobody waits for a look at the figures.
    if is_look_due(place.database, place.settings, person.id):
        after.add_task(look, place.database, place.settings, person.id)
    return stored


@router.post("/labels/{label}/replace")
def replace(person: Person, place: Place, label: Identity, key: Key, body: Submission) -> dict[str, Any]:
    """A new label in place of this one."""
    with place.database.write() as connection:
        return labels.replace(connection, person.id, label, key, body)


@router.post("/labels/{label}/void")
def undo(person: Person, place: Place, label: Identity) -> dict[str, Any]:
    """Makes the label void and its content the draft of the item, which is open again."""
    with place.database.write() as connection:
        return labels.undo(connection, place.settings, person.id, label)


@router.get("/labels")
def own_labels(
    person: Person,
    place: Place,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    before: Annotated[int, Query(ge=0, le=2**53)] = 2**53,
) -> dict[str, Any]:
    """The person's own labels, newest first."""
    with place.database.read() as connection:
        rows = labels.own_labels(connection, person.id, limit, before)
        said = reviews.reviews_of(connection, [row["label"] for row in rows])
    return {"labels": [{**row, "reviews": said.get(row["label"], [])} for row in rows]}
