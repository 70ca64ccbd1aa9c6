"""Reads the rows that a stage learns from: files, folders and hub datasets, checked, mixed and without duplicates.

    sources -> read_source (place, row) -> convert -> form -> mix by weight -> deduplicate -> encoders (fit to context)

Every row keeps the place it came from, so that whatever is wrong with it later is told with file and line. An
`DatasetReader` counts what is left out on the way, and why.
"""

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
from learners.data.config import DataConfig, SourceConfig
from learners.data.records import FORMS, InvalidRow, Row

T = TypeVar("T")
SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".parquet")
SENTENCE_END = re.compile(r"""[.!?…。！？]["'”’)\]]*(?=\s)|\n+""")


class SourceRow(NamedTuple):
    """A row and the place it was read from, as errors name it."""

    where: str
    row: Row


class DatasetReader:
    """Rows of one kind on their way to tokens; `counts` says how many were read, left out, shortened and kept."""

    def __init__(self, kind: str, config: DataConfig, seed: int) -> None:
        self.kind, self.config, self.seed = kind, config, seed
        self.counts: Counter[str] = Counter()
        self.owners: set[str] = set()  # the values of `data.split_key`

    def read(self, sources: Sequence[SourceConfig]) -> list[SourceRow]:
        """The rows of all sources in one form. Raises UserError for a broken row (over `data.max_invalid_rows` of them) and
        where nothing is left."""
        parts = []
        for source in sources:
            try:
                parts.append(list(self._checked(source)))
            except UnicodeDecodeError as fault:
                raise UserError(
                    f"{source.path}: not text in UTF-8 ({fault.reason} at byte {fault.start})"
                ) from None
        rows = self._mixed(parts, [source.weight for source in sources])
        rows = self._distinct(rows) if self.config.deduplicate else rows
        if not rows:
            raise UserError(
                f"{', '.join(s.path for s in sources)}: no rows for data.{self.kind}; {self.counts_text()}"
            )
        self.counts["kept"] = len(rows)
        self.owners = {
            str(row[by]) for _, row in rows if (by := self.config.split_key) and row.get(by) is not None
        }
        return rows

    def fitted(
        self, where: str, text: str, encode: Callable[[str], list[T]], limit: int
    ) -> tuple[str, list[T]] | None:
        """`text` and its tokens if these are within the limit, else what `data.overlong` says: UserError, None (the row is
        left out), or the longest run of whole sentences that fits (None if not one does)."""
        if (length := len(tokens := encode(text))) <= limit:
            return text, tokens
        if self.config.overlong == "refuse":
            raise UserError(
                f"{where}: {length} tokens, but there is room for {limit}; shorten it, raise model.context or set data.overlong"
            )
        ends = [m.end() for m in SENTENCE_END.finditer(text)] if self.config.overlong == "truncate" else []
        fitting = bisect.bisect_right(ends, limit, key=lambda end: len(encode(text[:end].rstrip())))
        if not fitting:
            self.counts["overlong"] += 1
            self.counts["kept"] -= 1
            return None
        self.counts["truncated"] += 1
        text = text[: ends[fitting - 1]].rstrip()
        return text, encode(text)

    def counts_text(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in self.counts.items() if count) or "0 read"

    def _checked(self, source: SourceConfig) -> Iterator[SourceRow]:
        convert = load_object(source.convert) if source.convert else None
        for where, given in read_source(source, self.config):
            self.counts["read"] += 1
            try:
                if isinstance(given, InvalidRow):
                    raise given
                if not isinstance(given, dict):
                    raise InvalidRow("expected a JSON object")
                rows = _converted(given, convert) if convert else [given]
                yield from [SourceRow(where, FORMS[self.kind].read(row)) for row in rows]
            except InvalidRow as wrong:
                self.counts["broken"] += 1
                if self.counts["broken"] > self.config.max_invalid_rows:
                    raise UserError(f"{where}: {wrong}") from None
                logging.warning("%s: %s (skipped)", where, wrong)

    def _mixed(self, parts: list[list[SourceRow]], weights: list[float | None]) -> list[SourceRow]:
        """All rows, or of each source its share by weight, drawn by the seed."""
        if not any(weights):
            return [row for part in parts for row in part]
        shares = np.array(weights, dtype=float) / sum(w or 0.0 for w in weights)
        total = min(len(part) / share for part, share in zip(parts, shares, strict=True))
        mixed = []
        for i, (part, share) in enumerate(zip(parts, shares, strict=True)):
            drawn = np.random.default_rng([self.seed, 5, i]).permutation(len(part))[: round(total * share)]
            self.counts["outweighed"] += len(part) - len(drawn)
            mixed += [part[j] for j in sorted(drawn)]
        return mixed

    def _distinct(self, rows: list[SourceRow]) -> list[SourceRow]:
        found: dict[str, SourceRow] = {}
        for located in rows:
            content = json.dumps(
                [located.row.get(key) for key in FORMS[self.kind].identity], ensure_ascii=False
            )
            found.setdefault(re.sub(r"(\\[nrt]|\s)+", "", content).lower(), located)
        self.counts["duplicate"] += len(rows) - len(found)
        return list(found.values())


def _converted(row: Row, convert: Callable[[Row], list[Row]]) -> list[Row]:
    try:
        return list(convert(row))
    except Exception as fault:  # the user's code; what it stumbles over is the row
        raise InvalidRow(
            f"{convert.__module__}:{convert.__name__}: {type(fault).__name__}: {fault}"
        ) from fault


def local_path(source: SourceConfig, config: DataConfig, key: str = "data") -> Path | None:
    """Where a source lies on disk; None for the name of a hub dataset. Raises UserError for a file that is missing."""
    path = Path(config.root).expanduser() / Path(source.path).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix in SUFFIXES):
        return path
    if path.exists():
        raise UserError(f"{key}={path}: unknown kind of file; expected one of {', '.join(SUFFIXES)}")
    if path.suffix in SUFFIXES or not re.fullmatch(r"[\w-]+/[\w.-]+", source.path):
        raise UserError(
            f"{key}={path}: no such file; data.root={config.root} is where relative paths of section data start"
        )
    return None


def read_source(source: SourceConfig, config: DataConfig) -> Iterator[tuple[str, Any]]:
    """(place, row) of every row of a source, in its order; a row that cannot be parsed is given as a InvalidRow."""
    path = local_path(source, config)
    if path is None or path.is_dir() or path.suffix in (".csv", ".parquet"):
        yield from _tabular(path, source)
    elif path.suffix == ".txt":
        text = path.read_text(encoding="utf-8")
        documents = [text] if config.documents == "file" else [d.strip() for d in text.split("\n\n")]
        yield from ((f"{path}, document {n}", {"text": d}) for n, d in enumerate(documents, 1) if d.strip())
    elif path.suffix == ".jsonl":
        yield from _json_lines(path)
    else:
        rows = _parsed(text := path.read_text(encoding="utf-8"))
        if isinstance(rows, InvalidRow):
            raise UserError(f"{path}: {rows}")
        if not isinstance(rows, list):
            raise UserError(
                f"{path}: expected a list of JSON objects, found {text.strip()[:1]!r} at the start"
            )
        yield from ((f"{path}, item {n}", row) for n, row in enumerate(rows, 1))


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path}, line {number}", _parsed(line)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as fault:
        line = f"line {fault.lineno}, " if text.count("\n") > 1 else ""
        return InvalidRow(f"not valid JSON ({fault.msg} at {line}column {fault.colno})")


def _tabular(path: Path | None, source: SourceConfig) -> Iterator[tuple[str, Any]]:
    """Rows of a CSV or Parquet file, a folder or a hub dataset, by the `datasets` library. CSV cells stay texts."""
    import datasets

    datasets.disable_progress_bars()
    name = str(path or source.path)
    try:
        if path and path.suffix == ".csv":
            with open(path, newline="", encoding="utf-8") as file:
                columns = dict.fromkeys(next(csv.reader(file), []), datasets.Value("string"))
            rows = datasets.Dataset.from_csv(name, features=datasets.Features(columns), keep_default_na=False)
        elif path and path.suffix == ".parquet":
            rows = datasets.Dataset.from_parquet(name)
        else:
            rows = datasets.load_dataset(name, source.subset, split=source.split)
    except Exception as fault:  # the library raises a dozen kinds; all of them are about this source
        reason = str(fault.__cause__ or fault).strip().splitlines()[:1]
        raise UserError(f"{name}: cannot be read ({type(fault).__name__}: {''.join(reason)})") from fault
    yield from ((f"{name}, row {n}", row) for n, row in enumerate(rows, 1))
