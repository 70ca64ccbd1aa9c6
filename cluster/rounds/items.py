"""From sampled responses to what people rank, and back: equal responses are shown once, and a ranking is
written down for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from learners.data.records import RankingRecord

Row = dict[str, Any]
PER_RESPONSE = ("responses", "ended", "policy", "decoding")


def shown(record: Row) -> Row | None:
    """The item of a `ResponsesRecord`, with each different response once; None if all are equal."""
    places = list(_first_places(record).values())
    if len(places) < 2:
        return None
    return {**record, **{key: [record[key][place] for place in places] for key in PER_RESPONSE}}


def expanded(ranking: Row, record: Row) -> Row:
    """A ranking of what `shown` gives, as one of all responses of the record: equal ones have one rank."""
    place_of = {response: place for place, response in enumerate(_first_places(record))}
    shown_at = [place_of[response] for response in _responses(record)]
    row = {**ranking, **{key: record[key] for key in PER_RESPONSE}}
    for key in ("ranks", "likert", "flags"):
        if ranking.get(key):
            row[key] = [ranking[key][place] for place in shown_at]
    if ranking.get("strength") is not None and len(shown_at) != 2:
        row["strength"] = None
    row["shown_order"] = row.pop("order", None)
    stored: Row = RankingRecord.parse(row).stored_row()
    return stored


def _responses(record: Row) -> list[tuple[str, bool]]:
    return list(zip(record["responses"], record["ended"], strict=True))


def _first_places(record: Row) -> dict[tuple[str, bool], int]:
    """Each different response, and where it stands first."""
    places: dict[tuple[str, bool], int] = {}
    for place, response in enumerate(_responses(record)):
        places.setdefault(response, place)
    return places


def comparison(prompt: Any, answers: Mapping[str, Row], policies: Mapping[str, str]) -> Row:
    """The item that compares two policies' answers to a prompt. `policies`: the version of each by its
    name in `answers`, the challenger first."""
    names = list(policies)
    return {
        "prompt": prompt,
        "responses": [answers[name]["text"] for name in names],
        "ended": [bool(answers[name]["ended"]) for name in names],
        "policy": [{"model": policies[name], "version": policies[name]} for name in names],
    }


def is_tie_unseen(row: Row) -> bool:
    """Whether both answers are the same, so that nobody has to be asked."""
    first, second = _responses(row)
    return first == second


def versions(row: Row) -> Sequence[str]:
    """The policy version of each response."""
    return [str(policy["version"]) for policy in row["policy"]]
