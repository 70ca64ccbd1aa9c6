"""Import and export by the name of a format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_jsonl, write_jsonl
from label.formats import anthropic, arena, argilla, hub, label_studio, oasst, table
from label.formats.reading import Entries, an_object, json_lines
from label.formats.rows import InvalidRow, Row, checked, content_hash, pseudonym, without_surrogates


@dataclass(frozen=True)
class Format:
    entries: Callable[[Path], Entries]
    rows: Callable[[Any], Iterable[Row | str]]
    """The label rows of one entry, or a word for why there is none: skipped, draft."""
    write: Callable[[Sequence[Row], Path], Counter[str]]
    """Writes a file or folder; counts what was written, and what the format cannot hold."""
    about: str
    suffix: str
    """After the name of an export, for the file or folder that it is written to."""

    def convert(self, rows: Path, path: Path) -> Counter[str]:
        """Writes the label rows of a JSONL file in this format; counts as `export_labels`."""
        return self.write(read_jsonl(rows), path)


def _write_rows(rows: Sequence[Row], path: Path) -> Counter[str]:
    write_jsonl(path, rows)
    return Counter(rows=len(rows))


def _own_row(value: Any) -> Iterator[Row]:
    yield an_object(value)


FORMATS: dict[str, Format] = {
    "jsonl": Format(json_lines, _own_row, _write_rows, "label rows, one a line: complete", ".jsonl"),
    "label-studio": Format(
        label_studio.entries,
        label_studio.rows,
        label_studio.write,
        "tasks with annotations (JSON)",
        "-label-studio/tasks.json",
    ),
    "argilla": Format(
        argilla.entries, argilla.rows, argilla.write, "a folder with records and settings", "-argilla"
    ),
    "hub": Format(
        hub.entries, hub.rows, hub.write, "a folder of Parquet for Hugging Face datasets: complete", "-hub"
    ),
    "anthropic": Format(
        json_lines, anthropic.rows, anthropic.write, "chosen and rejected as transcripts", "-anthropic.jsonl"
    ),
    "oasst": Format(
        json_lines, oasst.rows, oasst.write, "Open-Assistant's message trees with ranks", "-oasst.jsonl"
    ),
    "arena": Format(arena.entries, arena.rows, arena.write, "battles of two models", "-arena.jsonl"),
    "csv": Format(table.entries, table.rows, table.write, "one line for each response", ".csv"),
}


@dataclass
class Imported:
    labels: list[Row] = field(default_factory=list)
    """Rows with ranks, checked, under pseudonyms."""
    items: list[Row] = field(default_factory=list)
    """Rows without ranks: what is to be labeled."""
    hashes: set[str] = field(default_factory=set)
    """Content hashes of the labels. Stored with them, they make a second import do nothing."""
    counts: Counter[str] = field(default_factory=Counter)
    """read, labels, items, duplicates, skipped, draft, replaced characters."""


def import_labels(
    path: Path, name: str, known: Collection[str] = (), salt: str = "", max_invalid: int = 0
) -> Imported:
    """Reads a file or folder. Labels whose content hash is in `known`, or that come twice, are counted
    as duplicates and left out. Up to `max_invalid` invalid entries are counted and left out; the next
    one is a UserError that names its file and line."""
    chosen = _format(name)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; expected {chosen.about}")
    result = Imported()
    for where, value in chosen.entries(path):
        result.counts["read"] += 1
        try:
            if isinstance(value, InvalidRow):
                raise value
            # All labels of an entry are kept, or none.
            rows = [_prepared(row, salt, result) for row in chosen.rows(value)]
        except InvalidRow as error:
            result.counts["invalid"] += 1
            if result.counts["invalid"] > max_invalid:
                raise UserError(f"{where}: {error}") from None
            continue
        for row in rows:
            _add(row, known, result)
    return result


def _prepared(row: Row | str, salt: str, result: Imported) -> Row | str:
    if isinstance(row, str):
        return row
    cleaned, replaced = without_surrogates(row)
    result.counts["replaced characters"] += replaced
    valid = checked(cleaned)
    if valid.get("labeler"):
        valid["labeler"] = pseudonym(str(valid["labeler"]), salt)
    return valid


def _add(row: Row | str, known: Collection[str], result: Imported) -> None:
    if isinstance(row, str):
        result.counts[row] += 1
        return
    digest = content_hash(row)
    if digest in known or digest in result.hashes:
        result.counts["duplicates"] += 1
        return
    result.hashes.add(digest)
    kind = "labels" if "ranks" in row else "items"
    result.counts[kind] += 1
    getattr(result, kind).append(row)


def export_labels(rows: Sequence[Row], path: Path, name: str) -> Counter[str]:
    """Writes label rows in a format, whole or not at all; counts what was written and what the
    format cannot hold."""
    return _format(name).write(rows, path)


def export_format(name: str) -> Format:
    """Raises UserError for an unknown name."""
    return _format(name)


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise UserError(f"format {name!r}: unknown; expected one of {', '.join(FORMATS)}")
    return FORMATS[name]
