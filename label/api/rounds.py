"""Routes of rounds: what `hero rounds` has written about each, and the cord by which everybody who labels can
stop training."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import Field

from common.files import read_json, read_jsonl
from common.run_paths import stalled_key
from common.stop_request import request_stop, stop_request
from label.api.access import EVERYBODY, STAFF, place_of, requires
from label.errors import Forbidden
from label.store.batches import list_batches
from label.store.database import AnyRow, record_event
from label.submission import Body, CleanText
from label.workplace import Workplace

router = APIRouter(prefix="/api")
Person = Annotated[AnyRow, Depends(requires(*EVERYBODY))]
Staff = Annotated[AnyRow, Depends(requires(*STAFF))]
Place = Annotated[Workplace, Depends(place_of)]
NOT_SHOWN = ("comparison_prompts", "anchor_prompts", "inputs")
"""Long, and of no use to a person."""


class StopRequest(Body):
    why: Annotated[CleanText, Field(min_length=1, max_length=2000)]
    """Told to everybody who looks, and kept."""


@router.get("/rounds")
def rounds(_: Staff, place: Place) -> dict[str, Any]:
    """Every round with its figures, and how many labels its batches have."""
    found = []
    with place.database.read() as connection:
        batches = list_batches(connection)
    told = {row["key"] for row in read_jsonl(place.paths.rounds_log)}
    for paths in place.paths.started_rounds():
        values = {key: value for key, value in read_json(paths.state).items() if key not in NOT_SHOWN}
        values["stalled"] = stalled_key(values["round"], values["state"]) in told
        own = [
            one for one in batches if one["round"] == values["round"] and one["purpose"] in ("train", "ab")
        ]
        values["batches"] = [
            {key: one[key] for key in ("name", "purpose", "state", "items", "open_items", "labels")}
            for one in own
        ]
        found.append(values)
    return {"rounds": found, "stop": stop_request(place.paths)}


@router.get("/andon")
def stopped(_: Person, place: Place) -> dict[str, Any]:
    """Whether somebody has stopped training."""
    request = stop_request(place.paths)
    return {"stopped": request and {"why": request["why"], "time": request["time"]}}


@router.post("/andon")
def stop(person: Person, place: Place, body: StopRequest) -> dict[str, Any]:
    """Stops training after its present iteration, until an owner lets it go on (`hero rounds resume`)."""
    if person.state != "admitted":
        raise Forbidden("state", "only people who are admitted can stop training; tell an owner")
    request = request_stop(place.paths, person.pseudonym, body.why)
    with place.database.write() as connection:
        record_event(connection, "andon", person.id, None, why=body.why)
    return {"stopped": {"why": request["why"], "time": request["time"]}}
