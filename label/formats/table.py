"""CSV with a line for each response, for spreadsheets. The lines of a label follow each other and
have the same number in column `label`. A conversation stands in column `prompt` as JSON."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import atomic_path
from label.formats.reading import Entries
from label.formats.rows import InvalidRow, Row

TEXTS = ("item", "labeler", "group", "batch", "comment")
NUMBERS = ("round", "active_ms", "strength", "confidence")
OF_RESPONSE = ("response", "rank", "likert", "flags", "model")
COLUMNS = ("label", *TEXTS, *NUMBERS, "all_bad", "time", "prompt", *OF_RESPONSE)
LONGEST_CELL = 2**31 - 1


def entries(path: Path) -> Entries:
    """The lines of each label."""
    csv.field_size_limit(LONGEST_CELL)
    try:
        # utf-8-sig: spreadsheets write a byte order mark.
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            missing = {"label", "prompt", "response"} - set(reader.fieldnames or ())
            if missing:
                raise UserError(
                    f"{path}: no column {', '.join(sorted(missing))}; expected {', '.join(COLUMNS)}"
                )
            lines = ((f"{path}, line {reader.line_num}", line) for line in reader)
            for _, group in groupby(lines, key=lambda entry: entry[1]["label"]):
                members = list(group)
                yield members[0][0], [line for _, line in members]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV in UTF-8 ({error})") from None


def rows(value: Any) -> Iterator[Row]:
    lines: list[dict[str, str]] = value
    first = lines[0]
    row: Row = {"prompt": _prompt(first["prompt"]), "responses": [line["response"] for line in lines]}
    if any(line.get("rank") for line in lines):
        row["ranks"] = [_whole(line.get("rank"), "rank") for line in lines]
    if any(line.get("likert") for line in lines):
        row["likert"] = [_whole(line.get("likert"), "likert") for line in lines]
    if any(line.get("flags") for line in lines):
        row["flags"] = [(line.get("flags") or "").split() for line in lines]
    models = [line.get("model") for line in lines]
    if all(models):
        row["policy"] = [_policy(str(model)) for model in models]
    for key in TEXTS:
        if first.get(key):
            row[key] = first[key]
    for key in NUMBERS:
        if first.get(key):
            row[key] = _whole(first[key], key)
    if first.get("time"):
        row["time"] = _number(first["time"])
    if first.get("all_bad") == "true":
        row["all_bad"] = True
    yield row


def _prompt(cell: str) -> Any:
    if not cell.startswith('[{"'):
        return cell
    try:
        return json.loads(cell)
    except json.JSONDecodeError:
        return cell


def _whole(cell: str | None, key: str) -> int | None:
    if not cell:
        return None
    try:
        return int(cell)
    except ValueError:
        raise InvalidRow(f"column '{key}': expected a whole number, and not {cell!r}") from None


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise InvalidRow(f"column 'time': expected seconds since 1970, and not {cell!r}") from None


def _policy(cell: str) -> dict[str, str]:
    model, _, version = cell.partition(" ")
    return {"model": model, "version": version or model}


def write(rows: Sequence[Row], path: Path) -> Counter[str]:
    with atomic_path(path) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for number, row in enumerate(rows, 1):
            writer.writerows(_lines(number, row))
    return Counter(rows=len(rows))


def _lines(number: int, row: Row) -> Iterator[dict[str, Any]]:
    prompt = row["prompt"]
    if not isinstance(prompt, str):
        prompt = json.dumps(prompt, ensure_ascii=False)
    common = {key: row.get(key) for key in (*TEXTS, *NUMBERS, "time")}
    common |= {"label": number, "prompt": prompt, "all_bad": "true" if row.get("all_bad") else ""}
    for place, response in enumerate(row["responses"]):
        line = {**common, "response": response}
        for column, key in (("rank", "ranks"), ("likert", "likert")):
            if row.get(key):
                line[column] = row[key][place]
        if row.get("flags"):
            line["flags"] = " ".join(row["flags"][place])
        if row.get("policy"):
            policy = row["policy"][place]
            line["model"] = f"{policy['model']} {policy['version']}"
        yield line
