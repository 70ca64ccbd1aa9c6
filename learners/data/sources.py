"""Reads the rows that a stage learns from: files, folders and hub datasets.

    sources -> read_source -> convert -> record -> mix by weight -> leave out duplicates ->
    encoders (fit to context)

Every record keeps where it was read from, so that an error about it names file and line, also
later. A `DatasetReader` counts the rows that are left out on the way, by reason."""

from __future__ import annotations

import bisect
import csv
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from common.errors import UserError
from common.plugins import load_object
from common.random_streams import Stream, generator
from learners.data.config import DataConfig, SourceConfig
from learners.data.conversations import InvalidRow
from learners.data.records import SCHEMAS, Record, Row

T = TypeVar("T")
SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".parquet")
SENTENCE_END = re.compile(r"""[.!?…。！？]["'”’)\]]*(?=\s)|\n+""")


class SourceRow(NamedTuple):
    """A record, and where it was read from, as errors name it."""

    where: str
    record: Any
    """Of the kind's class in `records.SCHEMAS`."""


class DatasetReader:
    """Reads one kind of data. `stats` says how many rows were read, left out, shortened and
    kept."""

    def __init__(self, kind: str, config: DataConfig, seed: int) -> None:
        self.kind, self.config, self.seed = kind, config, seed
        self.schema: type[Record] = SCHEMAS[kind]
        self.stats: Counter[str] = Counter()
        self.split_values: set[str] = set()
        """Values of `data.split_key` in the rows that were kept."""

    def read(self, sources: Sequence[SourceConfig]) -> list[SourceRow]:
        """The records of all sources. Raises UserError for an invalid row (if there are more of
        them than `data.max_invalid_rows`), for a file that cannot be read, and if no row is
        left."""
        parts = []
        for source in sources:
            try:
                parts.append(list(self._records(source)))
            except UnicodeDecodeError as error:
                reason = f"{error.reason} at byte {error.start}"
                raise UserError(f"{source.path}: not text in UTF-8 ({reason})") from None
        rows = self._mix(parts, [source.weight for source in sources])
        if self.config.deduplicate:
            rows = self._deduplicate(rows)
        if not rows:
            paths = ", ".join(source.path for source in sources)
            raise UserError(f"{paths}: no rows for data.{self.kind}; {self.stats_text()}")
        self.stats["kept"] = len(rows)
        for _, record in rows:
            value = self.split_value(record)
            if value is not None:
                self.split_values.add(value)
        return rows

    def split_value(self, record: Record) -> str | None:
        """The record's value of `data.split_key`; None without that setting or without a value."""
        key = self.config.split_key
        value = record.value_of(key) if key else None
        # An empty cell of a CSV file is no user whom all such rows would belong to.
        if value is None or value == "":
            return None
        return str(value)

    def fit_to_length(
        self, where: str, text: str, encode: Callable[[str], list[T]], limit: int
    ) -> tuple[str, list[T]] | None:
        """`text` and its tokens, at most `limit` of them.

        What happens to a longer text is decided by `data.overlong`: UserError, None (the row is
        left out), or the longest run of whole sentences that fits (None if not even one does).
        """
        tokens = encode(text)
        if len(tokens) <= limit:
            return text, tokens
        if self.config.overlong == "refuse":
            raise UserError(
                f"{where}: {len(tokens)} tokens, but there is room for {limit}; shorten it, raise "
                "model.context or set data.overlong"
            )
        ends: list[int] = []
        if self.config.overlong == "truncate":
            ends = [match.end() for match in SENTENCE_END.finditer(text)]
        # Searched by halving, since each try encodes the text again.
        sentences = bisect.bisect_right(ends, limit, key=lambda end: len(encode(text[:end].rstrip())))
        if sentences == 0:
            self.stats["too_long"] += 1
            self.stats["kept"] -= 1  # `read` counted it before anything was encoded
            return None
        self.stats["truncated"] += 1
        text = text[: ends[sentences - 1]].rstrip()
        return text, encode(text)

    def stats_text(self) -> str:
        """The counts as text, for messages."""
        counts = []
        for name, count in self.stats.items():
            if count:
                counts.append(f"{count} {name.replace('_', ' ')}")
        return ", ".join(counts) or "0 read"

    def _records(self, source: SourceConfig) -> Iterator[SourceRow]:
        convert = load_object(source.convert) if source.convert else None
        for where, row in read_source(source, self.config):
            self.stats["read"] += 1
            # All rows that a function makes of one are kept, or none.
            try:
                records = [self.schema.parse(converted) for converted in _converted(row, convert)]
            except InvalidRow as error:
                self.stats["invalid"] += 1
                if self.stats["invalid"] > self.config.max_invalid_rows:
                    raise UserError(f"{where}: {error}") from None
                logging.warning("%s: %s (skipped)", where, error)
                continue
            for record in records:
                yield SourceRow(where, record)

    def _mix(self, parts: list[list[SourceRow]], weights: list[float | None]) -> list[SourceRow]:
        """All rows; or, with weights, a random part of each source, in its order, so that the
        shares are right."""
        if not any(weights):
            return [row for part in parts for row in part]
        shares = np.array(weights, dtype=float)
        shares /= shares.sum()
        # The source that is smallest for its share is used whole.
        total = min(len(part) / share for part, share in zip(parts, shares, strict=True))
        mixed: list[SourceRow] = []
        for i, (part, share) in enumerate(zip(parts, shares, strict=True)):
            rng = generator(self.seed, Stream.SOURCE_MIX, i)
            drawn = rng.permutation(len(part))[: round(total * share)]
            self.stats["dropped_by_mix"] += len(part) - len(drawn)
            # In the order of the file, so that the mix reads as its sources do.
            for j in sorted(drawn):
                mixed.append(part[j])
        return mixed

    def _deduplicate(self, rows: list[SourceRow]) -> list[SourceRow]:
        first: dict[str, SourceRow] = {}
        for source_row in rows:
            first.setdefault(source_row.record.duplicate_key(), source_row)
        self.stats["duplicate"] += len(rows) - len(first)
        return list(first.values())


def _converted(row: Any, convert: Callable[[Row], list[Row]] | None) -> list[Row]:
    """The rows that the user's function makes of one; the row itself without a function. Raises
    InvalidRow."""
    if isinstance(row, InvalidRow):
        raise row
    if convert is None:
        return [row]
    if not isinstance(row, dict):
        raise InvalidRow("expected a JSON object")
    try:
        return list(convert(row))
    except Exception as error:  # whatever the user's code raises is about this row
        name = f"{convert.__module__}:{convert.__name__}"
        raise InvalidRow(f"{name}: {type(error).__name__}: {error}") from error


def local_path(source: SourceConfig, config: DataConfig, key: str = "data") -> Path | None:
    """Where a source is on disk; None for the name of a hub dataset. Raises UserError for a file
    that is missing."""
    path = Path(config.root).expanduser() / Path(source.path).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix in SUFFIXES):
        return path
    if path.exists():
        raise UserError(f"{key}={path}: unknown kind of file; expected one of {', '.join(SUFFIXES)}")
    if path.suffix in SUFFIXES or not re.fullmatch(r"[\w-]+/[\w.-]+", source.path):
        raise UserError(
            f"{key}={path}: no such file; data.root={config.root} is where relative paths of section data "
            "start"
        )
    return None


def read_source(source: SourceConfig, config: DataConfig) -> Iterator[tuple[str, Any]]:
    """(where, row) of every row of a source, in its order. A row that cannot be parsed is an
    InvalidRow."""
    path = local_path(source, config)
    if path is None or path.is_dir() or path.suffix in (".csv", ".parquet"):
        yield from _tabular(path, source)
    elif path.suffix == ".txt":
        yield from _documents(path, config)
    elif path.suffix == ".jsonl":
        yield from _json_lines(path)
    else:
        yield from _json_list(path)


def _documents(path: Path, config: DataConfig) -> Iterator[tuple[str, Any]]:
    text = path.read_text(encoding="utf-8")
    if config.documents == "file":
        # As it is: the white space at its ends is part of the text.
        if text.strip():
            yield f"{path}, document 1", {"text": text}
        return
    for number, paragraph in enumerate(text.split("\n\n"), 1):
        if paragraph.strip():
            yield f"{path}, document {number}", {"text": paragraph.strip()}


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    # By hand and not by the `datasets` library, so that an error has the number of its line.
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path}, line {number}", _parse_json(line)


def _json_list(path: Path) -> Iterator[tuple[str, Any]]:
    text = path.read_text(encoding="utf-8")
    rows = _parse_json(text)
    if isinstance(rows, InvalidRow):
        raise UserError(f"{path}: {rows}")
    if not isinstance(rows, list):
        start = text.strip()[:1]
        raise UserError(f"{path}: expected a list of JSON objects, but the file starts with {start!r}")
    for number, row in enumerate(rows, 1):
        yield f"{path}, item {number}", row


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if text.count("\n") > 1 else ""
        return InvalidRow(f"not valid JSON ({error.msg} at {line}column {error.colno})")


def _tabular(path: Path | None, source: SourceConfig) -> Iterator[tuple[str, Any]]:
    """Rows of a CSV or Parquet file, a folder or a hub dataset, by the `datasets` library. CSV
    cells stay texts."""
    import datasets

    datasets.disable_progress_bars()
    name = str(path or source.path)
    try:
        if path and path.suffix == ".csv":
            # Else the library guesses types: a response "12" would be a number, and "NA" nothing.
            with open(path, newline="", encoding="utf-8") as file:
                columns = dict.fromkeys(next(csv.reader(file), []), datasets.Value("string"))
            rows = datasets.Dataset.from_csv(name, features=datasets.Features(columns), keep_default_na=False)
        elif path and path.suffix == ".parquet":
            rows = datasets.Dataset.from_parquet(name)
        else:
            rows = datasets.load_dataset(name, source.subset, split=source.split)
    except Exception as error:  # the library raises a dozen kinds; all of them are about this source
        reason = str(error.__cause__ or error).strip().splitlines()[:1]
        raise UserError(f"{name}: cannot be read ({type(error).__name__}: {''.join(reason)})") from error
    for number, row in enumerate(rows, 1):
        yield f"{name}, row {number}", row
