"""Argilla's records, in the columns in which its data sets are exported to the hub.

    prompt, response-1, …                  fields
    ranking.responses                      [[{"value": "response-1", "rank": 1}, …], …]  one for each user
    ranking.responses.users, .status       submitted is a label, discarded a skip, draft neither
    rating-response-1.responses, flags-…   the same of the other questions

A folder has records.json and settings.json; a records file alone, as JSON or Parquet, is read
too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common.files import write_json
from label.formats.grouping import by_item
from label.formats.reading import Entries, an_object, json_list
from label.formats.rows import InvalidRow, Row

STATUSES = {"submitted": None, "discarded": "skipped", "draft": "draft", "pending": "draft"}
METADATA = ("item", "batch", "round")


def entries(path: Path) -> Entries:
    if path.is_dir():
        path = path / "records.json"
    if path.suffix == ".parquet":
        import pyarrow.parquet

        for number, record in enumerate(pyarrow.parquet.read_table(path).to_pylist(), 1):
            yield f"{path}, record {number}", record
        return
    yield from json_list(path, "record")


def rows(value: Any) -> Iterator[Row | str]:
    record = an_object(value)
    names = _response_names(record)
    metadata = record.get("metadata") or {}
    item: Row = {
        "prompt": metadata.get("messages") or record.get("prompt"),
        "responses": [record[name] for name in names],
    }
    for key in METADATA:
        known = metadata.get(key, record.get(f"metadata.{key}"))
        if known is not None:
            item[key] = known
    rankings = record.get("ranking.responses") or []
    if not rankings:
        yield item
    users = record.get("ranking.responses.users") or [None] * len(rankings)
    statuses = record.get("ranking.responses.status") or ["submitted"] * len(rankings)
    if not len(rankings) == len(users) == len(statuses):
        raise InvalidRow("key 'ranking.responses': expected as many users and statuses as responses")
    for ranking, user, status in zip(rankings, users, statuses, strict=True):
        if status not in STATUSES:
            raise InvalidRow(
                f"key 'ranking.responses.status': expected {', '.join(STATUSES)}; got {status!r}"
            )
        skipped = STATUSES[status]
        if skipped is not None:
            yield skipped
            continue
        label: Row = {**item, "ranks": _ranks(ranking, names), "labeler": user}
        yield {**label, **_other_answers(record, names, user)}


def _response_names(record: dict[str, Any]) -> list[str]:
    names: list[str] = []
    while record.get(f"response-{len(names) + 1}") is not None:
        names.append(f"response-{len(names) + 1}")
    return names


def _ranks(ranking: Any, names: list[str]) -> list[int]:
    ranks: dict[str, Any] = {}
    for entry in ranking:
        entry = an_object(entry)
        if entry.get("value") not in names:
            raise InvalidRow(f"key 'ranking.responses': {entry.get('value')!r} is no field of the record")
        ranks[entry["value"]] = entry.get("rank")
    missing = [name for name in names if name not in ranks]
    if missing:
        raise InvalidRow(f"key 'ranking.responses': {', '.join(missing)} has no rank")
    return [ranks[name] for name in names]


def _other_answers(record: dict[str, Any], names: list[str], user: Any) -> Row:
    answers: Row = {}
    likert = [_of_user(record, f"rating-{name}", user) for name in names]
    if any(rating is not None for rating in likert):
        answers["likert"] = likert
    flags = [list(_of_user(record, f"flags-{name}", user) or []) for name in names]
    if any(flags):
        answers["flags"] = flags
    comment = _of_user(record, "comment", user)
    if comment:
        answers["comment"] = comment
    times = (record.get("metadata") or {}).get("active_ms", {})
    if user in times:
        answers["active_ms"] = times[user]
    return answers


def _of_user(record: dict[str, Any], question: str, user: Any) -> Any:
    users = record.get(f"{question}.responses.users") or []
    if user not in users:
        return None
    return record[f"{question}.responses"][users.index(user)]


def write(rows: Sequence[Row], path: Path) -> Counter[str]:
    groups = by_item(rows)
    most = max((len(group[0]["responses"]) for group in groups), default=2)
    flags = {flag for row in rows for of_one in row.get("flags") or [] for flag in of_one}
    records = [_record(number, group) for number, group in enumerate(groups, 1)]
    write_json(path / "records.json", records)
    write_json(path / "settings.json", settings(most, sorted(flags)))
    return Counter(records=len(records), rows=len(rows))


def _record(number: int, group: list[Row]) -> dict[str, Any]:
    row = group[0]
    names = [f"response-{place}" for place in range(1, len(row["responses"]) + 1)]
    metadata: dict[str, Any] = {key: row[key] for key in METADATA if row.get(key) is not None}
    prompt = row["prompt"]
    if not isinstance(prompt, str):
        metadata["messages"] = prompt
        prompt = "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)
    record: dict[str, Any] = {"id": str(row.get("item") or number), "prompt": prompt}
    record |= dict(zip(names, row["responses"], strict=True))
    for one in group:
        if "ranks" in one:
            _add_answers(record, names, one)
            if one.get("active_ms") is not None:
                metadata.setdefault("active_ms", {})[one.get("labeler")] = one["active_ms"]
    return {**record, "metadata": metadata}


def _add_answers(record: dict[str, Any], names: list[str], row: Row) -> None:
    ranking = [{"value": name, "rank": rank} for name, rank in zip(names, row["ranks"], strict=True)]
    _add_answer(record, "ranking", row, ranking)
    for place, name in enumerate(names):
        likert, flags = row.get("likert") or [], row.get("flags") or []
        if likert and likert[place] is not None:
            _add_answer(record, f"rating-{name}", row, likert[place])
        if flags and flags[place]:
            _add_answer(record, f"flags-{name}", row, flags[place])
    if row.get("comment"):
        _add_answer(record, "comment", row, row["comment"])


def _add_answer(record: dict[str, Any], question: str, row: Row, value: Any) -> None:
    record.setdefault(f"{question}.responses", []).append(value)
    record.setdefault(f"{question}.responses.users", []).append(row.get("labeler"))
    record.setdefault(f"{question}.responses.status", []).append("submitted")


def settings(responses: int, flags: Sequence[str]) -> dict[str, Any]:
    """Fields and questions, as `argilla.Settings` has them."""
    names = [f"response-{place}" for place in range(1, responses + 1)]
    fields = [_field("prompt", required=True)]
    fields += [_field(name, required=place < 2) for place, name in enumerate(names)]
    ranking = {"type": "ranking", "options": [{"value": name, "text": name} for name in names]}
    questions = [_question("ranking", ranking, required=True)]
    for name in names:
        rating = {"type": "rating", "options": [{"value": value} for value in range(1, 8)]}
        questions.append(_question(f"rating-{name}", rating, required=False))
        if flags:
            options = [{"value": flag, "text": flag} for flag in flags]
            choice = {"type": "multi_label_selection", "options": options}
            questions.append(_question(f"flags-{name}", choice, required=False))
    questions.append(_question("comment", {"type": "text"}, required=False))
    return {"guidelines": "", "fields": fields, "questions": questions, "metadata": [], "vectors": []}


def _field(name: str, required: bool) -> dict[str, Any]:
    return {"name": name, "title": name, "required": required, "settings": {"type": "text"}}


def _question(name: str, kind: dict[str, Any], required: bool) -> dict[str, Any]:
    return {"name": name, "title": name, "required": required, "settings": kind}
