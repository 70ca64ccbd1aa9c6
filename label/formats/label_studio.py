"""Label Studio's JSON: tasks with annotations, of the tags Ranker, Pairwise, Rating and Choices.

    {"data": {"prompt", "items": [{"id", "title", "body"}]},
     "annotations": [{"completed_by", "lead_time", "was_cancelled", "ground_truth", "created_at",
                      "result": [{"from_name", "to_name", "type", "value"}]}]}

Ties are buckets place-1, place-2 and so on, since a Ranker without buckets has none. Beside the
tasks stands labeling.xml, the interface that gives such annotations."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from common.files import write_json, write_text
from label.formats.grouping import by_item
from label.formats.reading import Entries, an_object, json_list
from label.formats.rows import InvalidRow, Row

PLACE = re.compile(r"(?:place[-_ ]?)?([1-9][0-9]*)")


def entries(path: Path) -> Entries:
    return json_list(path, "task")


def rows(value: Any) -> Iterator[Row | str]:
    task = an_object(value)
    data = an_object(task.get("data"))
    ids, responses = _responses(data)
    item = {"prompt": data.get("messages") or data.get("prompt"), "responses": responses}
    for key in ("item", "batch", "round"):
        if key in data:
            item[key] = data[key]
    annotations = task.get("annotations", task.get("completions")) or []
    if not annotations:
        yield item
    for annotation in annotations:
        if annotation.get("was_cancelled"):
            yield "skipped"
            continue
        yield {**item, **_label(annotation, ids)}


def _responses(data: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Ids and texts of what is compared: a list of items, or two texts of a Pairwise task."""
    items = data.get("items")
    if isinstance(items, list):
        texts = []
        for item in items:
            texts.append(an_object(item).get("body", item.get("html", item.get("title"))))
        return [str(item.get("id")) for item in items], texts
    for left, right in (("answer1", "answer2"), ("text1", "text2"), ("left", "right")):
        if left in data and right in data:
            return ["left", "right"], [data[left], data[right]]
    raise InvalidRow("key 'data': expected items with id and body, or answer1 and answer2")


def _label(annotation: dict[str, Any], ids: list[str]) -> Row:
    label: Row = {"ranks": None}
    likert: list[int | None] = [None] * len(ids)
    flags: list[list[str]] = [[] for _ in ids]
    for result in annotation.get("result") or []:
        kind, value, target = result.get("type"), result.get("value") or {}, str(result.get("to_name"))
        if kind == "ranker":
            label["ranks"] = _ranks(value.get("ranker"), ids)
        elif kind == "pairwise":
            label["ranks"] = _pair(value.get("selected"))
        elif kind == "rating" and target in ids:
            likert[ids.index(target)] = value.get("rating")
        elif kind == "choices" and target in ids:
            flags[ids.index(target)] = list(value.get("choices") or [])
        elif kind == "textarea" and result.get("from_name") == "comment":
            label["comment"] = "\n".join(value.get("text") or [])
    if label["ranks"] is None:
        raise InvalidRow("key 'annotations.result': expected a result of type ranker or pairwise")
    if any(rating is not None for rating in likert):
        label["likert"] = likert
    if any(flags):
        label["flags"] = flags
    label["labeler"] = _person(annotation.get("completed_by"))
    if annotation.get("lead_time") is not None:
        label["active_ms"] = round(1000 * annotation["lead_time"])
    if annotation.get("ground_truth"):
        label["gold"] = True
    if annotation.get("created_at"):
        label["time"] = _seconds(annotation["created_at"])
    return label


def _ranks(ranker: Any, ids: list[str]) -> list[int]:
    if isinstance(ranker, dict) and len(ranker) == 1 and not PLACE.fullmatch(next(iter(ranker))):
        # Without buckets the only key is the name of the tag.
        ranker = next(iter(ranker.values()))
    if isinstance(ranker, list):
        ranker = {str(place): [item] for place, item in enumerate(ranker, 1)}
    if not isinstance(ranker, dict):
        raise InvalidRow("key 'value.ranker': expected a list of ids, or buckets with lists of ids")
    ranks = dict.fromkeys(ids, 0)
    for bucket, members in ranker.items():
        place = PLACE.fullmatch(bucket)
        if place is None and members:
            raise InvalidRow(f"key 'value.ranker.{bucket}': expected buckets place-1, place-2 and so on")
        for member in members:
            if str(member) not in ranks:
                raise InvalidRow(f"key 'value.ranker.{bucket}': {member!r} is no id of data.items")
            ranks[str(member)] = int(place[1]) if place else 0
    missing = [name for name, rank in ranks.items() if rank == 0]
    if missing:
        raise InvalidRow(f"key 'value.ranker': {', '.join(missing)} has no place")
    return list(ranks.values())


def _pair(selected: Any) -> list[int]:
    if selected not in ("left", "right"):
        raise InvalidRow(f"key 'value.selected': expected left or right, and not {selected!r}")
    return [1, 2] if selected == "left" else [2, 1]


def _person(value: Any) -> str | None:
    """`completed_by` is a number, or an object with id and email."""
    if isinstance(value, dict):
        value = value.get("email") or value.get("id")
    return None if value is None else str(value)


def _seconds(value: str) -> float:
    try:
        return datetime.fromisoformat(value).timestamp()
    except ValueError:
        raise InvalidRow(f"key 'created_at': expected an ISO date, and not {value!r}") from None


def write(rows: Sequence[Row], path: Path) -> Counter[str]:
    tasks, most, flags = [], 2, set()
    for number, group in enumerate(by_item(rows), 1):
        tasks.append(_task(number, group))
        most = max(most, len(group[0]["responses"]))
        for row in group:
            flags |= {flag for of_one in row.get("flags") or [] for flag in of_one}
    write_json(path, tasks)
    write_text(path.with_name("labeling.xml"), labeling_xml(most, sorted(flags)))
    return Counter(tasks=len(tasks), rows=len(rows))


def _task(number: int, group: list[Row]) -> dict[str, Any]:
    row = group[0]
    ids = [f"response-{place}" for place in range(1, len(row["responses"]) + 1)]
    items = []
    for name, text in zip(ids, row["responses"], strict=True):
        items.append({"id": name, "title": name.replace("-", " ").capitalize(), "body": text})
    prompt = row["prompt"]
    data: dict[str, Any] = {"prompt": prompt, "items": items}
    if not isinstance(prompt, str):
        turns = [f"{message['role']}: {message['content']}" for message in prompt]
        data |= {"prompt": "\n\n".join(turns), "messages": prompt}
    for key in ("item", "batch", "round"):
        if row.get(key) is not None:
            data[key] = row[key]
    annotations = []
    for place, one in enumerate(group, 1):
        if "ranks" in one:
            annotations.append({"id": 1000 * number + place, **_annotation(one, ids)})
    return {"id": number, "data": data, "annotations": annotations}


def _annotation(row: Row, ids: list[str]) -> dict[str, Any]:
    buckets: dict[str, list[str]] = {}
    for rank in sorted(set(row["ranks"])):
        members = [name for name, own in zip(ids, row["ranks"], strict=True) if own == rank]
        buckets[f"place-{rank}"] = members
    result = [_result("rank", "results", "ranker", buckets)]
    for name, rating in zip(ids, row.get("likert") or [None] * len(ids), strict=True):
        if rating is not None:
            result.append(_result(f"rating-{name}", name, "rating", rating))
    for name, flags in zip(ids, row.get("flags") or [[]] * len(ids), strict=True):
        if flags:
            result.append(_result(f"flags-{name}", name, "choices", flags))
    if row.get("comment"):
        comment = {"from_name": "comment", "to_name": "prompt", "type": "textarea"}
        result.append({**comment, "value": {"text": [row["comment"]]}})
    annotation: dict[str, Any] = {
        "completed_by": row.get("labeler"),
        "was_cancelled": False,
        "ground_truth": bool(row.get("gold")),
        "result": result,
    }
    if row.get("active_ms") is not None:
        annotation["lead_time"] = row["active_ms"] / 1000
    if row.get("time") is not None:
        annotation["created_at"] = datetime.fromtimestamp(row["time"], UTC).isoformat()
    return annotation


def _result(name: str, target: str, kind: str, value: Any) -> dict[str, Any]:
    return {"from_name": name, "to_name": target, "type": kind, "value": {kind: value}}


def labeling_xml(responses: int, flags: Sequence[str]) -> str:
    """The interface: a list to sort into places, and beside it a rating of each response."""
    lines = ["<View>", '  <Text name="prompt" value="$prompt"/>']
    lines.append('  <List name="results" value="$items" title="Responses"/>')
    lines.append('  <Ranker name="rank" toName="results">')
    for place in range(1, responses + 1):
        lines.append(f'    <Bucket name="place-{place}" title="Place {place}"/>')
    lines.append("  </Ranker>")
    for place in range(1, responses + 1):
        name = f"response-{place}"
        lines.append(f'  <Text name="{name}" value="$items[{place - 1}].body"/>')
        lines.append(f'  <Rating name="rating-{name}" toName="{name}" maxRating="7"/>')
        if flags:
            lines.append(f'  <Choices name="flags-{name}" toName="{name}" choice="multiple">')
            lines += [f"    <Choice value={quoteattr(flag)}/>" for flag in flags]
            lines.append("  </Choices>")
    lines.append('  <TextArea name="comment" toName="prompt"/>')
    return "\n".join([*lines, "</View>", ""])
