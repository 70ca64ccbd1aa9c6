"""Reads one file as rows. Every format gives the same rows, with the values that are in the file.

A row comes with where it was read from, as errors name it. One that cannot be parsed comes as an
InvalidRow, so that the reader can skip it; what spoils the whole file is a UserError."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from common.errors import UserError
from learners.data.conversations import InvalidRow

Rows = Iterator[tuple[str, Any]]
Documents = Literal["paragraphs", "file"]

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
BLANK_LINES = re.compile(r"\n\s*\n")
BATCH_ROWS = 1000
LONGEST_CELL = 2**31 - 1
"""The csv module's own limit of 131,072 characters is shorter than a long document."""


def format_of(path: Path) -> str | None:
    """The suffix that tells a file's format, in lower case and without that of a compression; None
    for a format that is not read."""
    name = path.name.lower()
    for suffix in COMPRESSIONS:
        name = name.removesuffix(suffix)
    suffix = Path(name).suffix
    if suffix not in READERS:
        return None
    return suffix


def expected_formats() -> str:
    """The formats as messages list them."""
    return f"{', '.join(READERS)}; texts also with {', '.join(COMPRESSIONS)}"


def read_file(path: Path, documents: Documents) -> Rows:
    """(where, row) of every row of a file in one of the formats, in its order. `documents` says what
    a document of a .txt file is."""
    import pyarrow

    reader = READERS[format_of(path) or ""]
    try:
        yield from reader(path, documents)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: {_not_utf8(error)}") from None
    except InvalidRow as error:
        raise UserError(f"{path}: {error}") from None
    except (OSError, EOFError, ValueError, csv.Error, pyarrow.ArrowException) as error:
        reason = "".join(str(error).strip().splitlines()[:1])
        raise UserError(f"{path}: cannot be read ({type(error).__name__}: {reason})") from error


def _open(path: Path) -> BinaryIO:
    import pyarrow

    stream = pyarrow.input_stream(str(path), compression=COMPRESSIONS.get(path.suffix.lower()))
    # Only a buffered stream knows lines.
    return cast(BinaryIO, io.BufferedReader(stream))


def _read_text(path: Path) -> str:
    # utf-8-sig: Windows programs write a byte order mark, which is no part of the text.
    with io.TextIOWrapper(_open(path), encoding="utf-8-sig") as file:
        return file.read()


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not text in UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"


def _documents(path: Path, documents: Documents) -> Rows:
    return text_documents(str(path), _read_text(path), documents)


def text_documents(where: str, text: str, documents: Documents) -> Rows:
    """The documents of a text: all of it, or what is between blank lines."""
    if documents == "file":
        # As it is: the white space at its ends is part of the text.
        if text.strip():
            yield f"{where}, document 1", {"text": text}
        return
    number = 0
    for paragraph in BLANK_LINES.split(text):
        if paragraph.strip():
            number += 1
            yield f"{where}, document {number}", {"text": paragraph.strip()}


def _json_lines(path: Path, documents: Documents) -> Rows:
    # By bytes, so that a line in another encoding is one invalid row and not the end of the file.
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            row: Any
            try:
                row = _parse_json(line.decode("utf-8-sig"))
            except UnicodeDecodeError as error:
                row = InvalidRow(_not_utf8(error))
            yield f"{path}, line {number}", row


def _json(path: Path, documents: Documents) -> Rows:
    """A list of rows, one row alone or, as several programs write it under this name, one on each
    line."""
    text = _read_text(path)
    rows = _parse_json(text)
    if isinstance(rows, InvalidRow):
        if text.lstrip().startswith("["):
            raise rows
        yield from _json_lines(path, documents)
        return
    if not isinstance(rows, list):
        rows = [rows]
    for number, row in enumerate(rows, 1):
        yield f"{path}, item {number}", row


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if text.count("\n") > 1 else ""
        return InvalidRow(f"not valid JSON ({error.msg} at {line}column {error.colno})")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, a thousand brackets
        return InvalidRow(f"not JSON that can be read ({error})")


def _csv(path: Path, documents: Documents) -> Rows:
    """Cells stay texts: a response "12" is no number and "NA" not nothing."""
    csv.field_size_limit(LONGEST_CELL)
    with _open(path) as file:
        lines = _text_lines(file)
        first = next(lines, "")
        cells = csv.reader(chain([first], lines), delimiter=_delimiter(first), strict=True)
        header = next(cells, [])
        named = [name for name in header if name]
        if len(set(named)) < len(named):
            raise InvalidRow(f"two columns have one name; the columns are {', '.join(named)}")
        number = 0
        for row in cells:
            if not row:
                continue
            number += 1
            yield f"{path}, row {number}", _csv_row(header, row)


def _csv_row(header: list[str], cells: list[str]) -> dict[str, str] | InvalidRow:
    # Spreadsheets leave out empty cells at the end of a row, and have columns without a name.
    if len(cells) > len(header):
        return InvalidRow(f"{len(cells)} cells, but the header has {len(header)}; put quotes around texts")
    row = dict(zip(header, cells, strict=False))
    row.pop("", None)
    return row


def _text_lines(file: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        try:
            yield line.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InvalidRow(f"line {number}: {_not_utf8(error)}") from None


def _delimiter(header: str) -> str:
    """What separates cells: a semicolon where spreadsheets write a decimal comma."""
    return max(",;\t", key=header.count)


def _parquet(path: Path, documents: Documents) -> Rows:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        yield from _table_rows(path, file.iter_batches(BATCH_ROWS))


def _arrow(path: Path, documents: Documents) -> Rows:
    """As `Dataset.save_to_disk` writes it."""
    import pyarrow

    with pyarrow.memory_map(str(path)) as file:
        yield from _table_rows(path, pyarrow.ipc.open_stream(file))


def _table_rows(path: Path, batches: Iterable[Any]) -> Rows:
    import datasets

    number = 0
    for batch in batches:
        # The library knows its own column types, for example JSON kept as text.
        for row in datasets.Dataset(datasets.table.InMemoryTable.from_batches([batch])):
            number += 1
            yield f"{path}, row {number}", row


READERS: dict[str, Callable[[Path, Documents], Rows]] = {
    ".txt": _documents,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
