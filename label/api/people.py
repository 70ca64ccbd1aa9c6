"""Routes of a person about himself or herself: consent, joining, guidelines, own figures, leaving."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import Field, StrictBool

from label.api.access import COOKIE, EVERYBODY, check_origin, place_of, requires
from label.errors import BadInput
from label.store import guidelines, people, screening
from label.store.database import AnyRow
from label.store.overview import overview
from label.submission import Body, CleanText
from label.vocabulary import PROMPT_FLAGS, RESPONSE_FLAGS, SENSITIVE_TOPICS, SKIP_REASONS, Kind
from label.workplace import Workplace

router = APIRouter(prefix="/api")
Person = Annotated[AnyRow, Depends(requires(*EVERYBODY))]
Place = Annotated[Workplace, Depends(place_of)]


class JoinRequest(Body):
    code: Annotated[CleanText, Field(min_length=1, max_length=200)]
    name: Annotated[CleanText, Field(min_length=1, max_length=100)]
    consent_version: Annotated[CleanText, Field(max_length=40)]
    languages: Annotated[list[Annotated[CleanText, Field(max_length=40)]], Field(max_length=20)] = Field([])
    sensitive_ok: Annotated[list[Annotated[CleanText, Field(max_length=40)]], Field(max_length=20)] = Field(
        []
    )


class Acknowledgement(Body):
    version: Annotated[int, Field(ge=1, le=2**31)]


class Withdrawal(Body):
    keep_labels: StrictBool
    """Whether the labels stay, under a pseudonym that leads to nobody, or become void."""


@router.get("/consent")
def consent(place: Place) -> dict[str, Any]:
    """The text to consent to, before joining."""
    version, text = place.consent()
    return {"version": version, "text": text, "sensitive_topics": SENSITIVE_TOPICS}


@router.post("/join")
def join(
    request: Request,
    place: Place,
    response: Response,
    body: JoinRequest,
    key: Annotated[str, Header(alias="Idempotency-Key", max_length=100)] = "",
) -> dict[str, Any]:
    """Joins by an invite, and signs in."""
    check_origin(request)
    if not body.name.strip():
        raise BadInput("name", "give a name, for the owner of this workplace")
    for topic in body.sensitive_ok:
        if topic not in SENSITIVE_TOPICS:
            raise BadInput(
                "sensitive_ok", f"unknown topic {topic!r}; there are {', '.join(SENSITIVE_TOPICS)}"
            )
    version, _ = place.consent()
    given = people.Joining(**body.model_dump(), key=key)
    with place.database.write() as connection:
        person_id, token = people.join(connection, place.settings, version, given)
    is_https = (place.settings.public_url or "").startswith("https:")
    response.set_cookie(
        COOKIE, token, people.SESSION_DAYS * 86_400, httponly=True, samesite="strict", secure=is_https
    )
    return {"person": person_id}


@router.post("/session/end")
def end_session(request: Request, place: Place, response: Response, _: Person) -> dict[str, str]:
    """Signs out."""
    with place.database.write() as connection:
        people.end_session(connection, request.cookies.get(COOKIE, ""))
    response.delete_cookie(COOKIE)
    return {"state": "signed out"}


@router.get("/me")
def me(person: Person, place: Place) -> dict[str, Any]:
    """Own state, what waits, own figures, and the words that the pages show."""
    questions = 0
    with place.database.read() as connection:
        figures = overview(connection, person.id)
        if person.state == "screening" and place.settings.screening.required:
            progress = screening.progress(connection, place.questionnaire, person.id)
            questions = progress["total"] - progress["answered"]
    return {
        "name": person.name,
        "role": person.role,
        "state": person.state,
        "why": person.state_why,
        "pseudonym": person.pseudonym,
        "questions": questions,
        **figures,
        "response_flags": RESPONSE_FLAGS,
        "prompt_flags": PROMPT_FLAGS,
        "skip_reasons": SKIP_REASONS,
    }


@router.post("/me/pause")
def pause(person: Person, place: Place) -> dict[str, str]:
    """Pauses oneself; `resume` ends it."""
    return _change(place, person, "paused", people.OWN_PAUSE)


@router.post("/me/resume")
def resume(person: Person, place: Place) -> dict[str, str]:
    """Ends a pause of one's own. A pause that somebody else decided stays."""
    if person.state != "paused" or person.state_why != people.OWN_PAUSE:
        raise BadInput("state", "only a pause of your own ends so; ask the owner")
    return _change(place, person, "admitted", "")


@router.post("/me/leave")
def leave(person: Person, place: Place) -> dict[str, str]:
    """Leaves; the labels stay."""
    return _change(place, person, "left", "you left")


def _change(place: Workplace, person: AnyRow, state: str, why: str) -> dict[str, str]:
    if state != person.state and person.state not in ("admitted", "paused") and state != "left":
        raise BadInput("state", f"you are {person.state}")
    with place.database.write() as connection:
        people.set_state(connection, person.id, state, person.id, why)
    return {"state": state}


@router.post("/me/forget")
def forget(person: Person, place: Place, body: Withdrawal) -> dict[str, int]:
    """Withdraws one's data."""
    with place.database.write() as connection:
        return {"voided": people.forget(connection, person.id, body.keep_labels, person.id)}


@router.get("/guidelines")
def guideline(
    _: Person,
    place: Place,
    kind: Kind | None = None,
    version: Annotated[int | None, Query(ge=1, le=2**31)] = None,
) -> dict[str, Any]:
    """A version of a guideline, or the newest of a kind."""
    with place.database.read() as connection:
        if version is not None:
            row: Any = guidelines.get(connection, version)
        else:
            row = guidelines.newest(connection, kind or "rank")
    return {"version": row.version, "kind": row.kind, "text": row.text_md, "published": row.published}


@router.post("/guidelines/ack")
def acknowledge(person: Person, place: Place, body: Acknowledgement) -> dict[str, int]:
    """Says that one has read a version."""
    with place.database.write() as connection:
        guidelines.acknowledge(connection, person.id, body.version)
    return {"version": body.version}
