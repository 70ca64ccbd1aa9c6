"""Routes of owners and reviewers: people, invites, batches, items, guidelines, export."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import PlainTextResponse
from pydantic import Field

import label.export as exports
from common.files import to_json
from label.api.access import OWNERS, STAFF, place_of, requires
from label.errors import BadInput
from label.store import batches, guidelines, items, people
from label.store.database import AnyRow
from label.submission import Body, CleanText, Identity
from label.team import dossier, team
from label.vocabulary import Group, Kind, Purpose, Role
from label.workplace import Workplace

router = APIRouter(prefix="/api")
Owner = Annotated[AnyRow, Depends(requires(*OWNERS))]
Staff = Annotated[AnyRow, Depends(requires(*STAFF))]
Place = Annotated[Workplace, Depends(place_of)]
Name = Annotated[CleanText, Field(min_length=1, max_length=100)]


class InviteRequest(Body):
    role: Role = "labeler"
    group: Group = "training"
    uses: Annotated[int, Field(ge=1, le=10_000)] = 1


class StateChange(Body):
    state: CleanText
    why: Annotated[CleanText, Field(min_length=1, max_length=2000)]
    """Told to the person, and kept with the decision."""


class NewItems(Body):
    """The batch that items are added to."""

    name: Name
    kind: Kind = "rank"
    quota: Annotated[int, Field(ge=1, le=1000)] = 1
    purpose: Purpose = "train"
    round: Annotated[int, Field(ge=0, le=100_000)] = 0
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0


class BatchState(Body):
    state: Annotated[str, Field(pattern="^(open|closed)$")]


class Guideline(Body):
    kind: Kind
    text: CleanText


async def raw_body(request: Request) -> bytes:
    return await request.body()


@router.get("/people")
def list_people(_: Owner, place: Place) -> dict[str, Any]:
    """Everybody, with the figures of the work and what the questionnaire proposes."""
    with place.database.read() as connection:
        return {"people": team(connection, place)}


@router.get("/people/{person}")
def one_person(_: Owner, place: Place, person: Identity) -> dict[str, Any]:
    """One person, with the decisions so far and their evidence."""
    with place.database.read() as connection:
        return dossier(connection, place, people.resolve(connection, person))


@router.post("/people/{person}/state")
def set_state(owner: Owner, place: Place, person: Identity, body: StateChange) -> dict[str, str]:
    """Admits, pauses or rejects a person."""
    with place.database.write() as connection:
        people.set_state(connection, person, body.state, owner.id, body.why)
    return {"state": body.state}


@router.post("/invites")
def invite(owner: Owner, place: Place, body: InviteRequest) -> dict[str, str]:
    """A new invite link. The code stands in the fragment, which no log of a server holds."""
    with place.database.write() as connection:
        code = people.create_invite(connection, body.role, body.group, body.uses, owner.id)
    return {"url": f"{place.url}/join#{code}"}


@router.get("/batches")
def list_batches(_: Staff, place: Place) -> dict[str, Any]:
    with place.database.read() as connection:
        return {"batches": batches.list_batches(connection)}


@router.post("/batches/{batch}/state")
def set_batch_state(owner: Owner, place: Place, batch: Identity, body: BatchState) -> dict[str, str]:
    """Opens or closes a batch."""
    with place.database.write() as connection:
        batches.set_batch_state(connection, batch, body.state, owner.id)
    return {"state": body.state}


@router.post("/items", openapi_extra={"requestBody": {"content": {"application/x-ndjson": {}}}})
def add_items(
    owner: Owner,
    place: Place,
    content: Annotated[bytes, Depends(raw_body)],
    batch: Annotated[NewItems, Query()],
) -> dict[str, int]:
    """Adds an item for each JSON line; lines that are there already are counted only."""
    rows = []
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            rows.append(_parse(line, number))
    spec = items.BatchSpec(**batch.model_dump())
    return vars(items.add_items(place.database, spec, rows, owner.id))


def _parse(line: bytes, number: int) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:  # includes wrong UTF-8
        raise BadInput(f"line {number}", f"not JSON ({error})") from None


@router.get("/export", response_class=PlainTextResponse)
def export(
    _: Owner, place: Place, content: Annotated[str, Query(pattern="^(rankings|demonstrations)$")] = "rankings"
) -> PlainTextResponse:
    """Rows that training reads, as JSON lines."""
    with place.database.read() as connection:
        exported = exports.export(connection)
    rows = exported.rankings if content == "rankings" else exported.demonstrations
    text = "".join(to_json(row) + "\n" for row in rows)
    return PlainTextResponse(text, headers={"x-held-back": str(exported.held_back)})


@router.get("/guidelines/versions")
def guideline_versions(_: Staff, place: Place, kind: Kind = "rank") -> dict[str, Any]:
    """All versions of a guideline, the newest first."""
    with place.database.read() as connection:
        return {"versions": guidelines.versions(connection, kind)}


@router.post("/guidelines")
def publish(owner: Owner, place: Place, body: Guideline) -> dict[str, int]:
    """A new version, which everybody acknowledges before the next item."""
    with place.database.write() as connection:
        return {"version": guidelines.publish(connection, body.kind, body.text, owner.id)}
