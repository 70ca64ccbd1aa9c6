"""Reads the records that a stage learns from.

    sources -> read_source -> convert -> record -> mix by weight -> leave out duplicates ->
    encoders (fit to context)

Every record keeps where it was read from, so that an error about it names file and line, also
later. A `DatasetReader` counts the rows that are left out on the way, by reason."""

from __future__ import annotations

import bisect
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from common.errors import UserError
from common.plugins import describe_error
from common.random_streams import Stream, generator
from learners.data.config import DataConfig, SourceConfig
from learners.data.conversations import InvalidRow
from learners.data.forms.registry import load_converter
from learners.data.locations import read_source
from learners.data.records import SCHEMAS, Record, Row

T = TypeVar("T")
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
            parts.append(list(self._records(source)))
            if not parts[-1]:
                logging.warning("data.%s: %s has no rows", self.kind, source.path)
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
            self.leave_out("too_long")
            return None
        self.stats["truncated"] += 1
        text = text[: ends[sentences - 1]].rstrip()
        return text, encode(text)

    def leave_out(self, reason: str) -> None:
        """Counts a row that an encoder leaves out."""
        self.stats[reason] += 1
        self.stats["kept"] -= 1  # `read` counted it before anything was encoded

    def leave_out_invalid(self, where: str, error: InvalidRow) -> None:
        """Counts a row that an encoder cannot take. Raises UserError if there are more invalid rows
        than `data.max_invalid_rows`."""
        self._skip_invalid(where, error)
        self.stats["kept"] -= 1  # as in `leave_out`

    def _skip_invalid(self, where: str, error: InvalidRow) -> None:
        self.stats["invalid"] += 1
        if self.stats["invalid"] > self.config.max_invalid_rows:
            raise UserError(f"{where}: {error}") from None
        logging.warning("%s: %s (skipped)", where, error)

    def stats_text(self) -> str:
        """The counts as text, for messages."""
        counts = []
        for name, count in self.stats.items():
            if count:
                counts.append(f"{count} {name.replace('_', ' ')}")
        return ", ".join(counts) or "0 read"

    def _records(self, source: SourceConfig) -> Iterator[SourceRow]:
        convert = _Convert(source.convert, self.kind) if source.convert else None
        for where, row in read_source(source, self.config):
            self.stats["read"] += 1
            # All rows that a function makes of one are kept, or none.
            try:
                if isinstance(row, InvalidRow):
                    raise row
                converted = convert(row) if convert else [row]
                records = [self.schema.parse(one) for one in converted]
            except InvalidRow as error:
                self._skip_invalid(where, error)
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


class _Convert:
    """What `convert` names: a form, or the user's function, whose results are checked."""

    def __init__(self, path: str, kind: str) -> None:
        self.path = path
        self.function = load_converter(path, "convert", kind)

    def __call__(self, row: Any) -> list[Row]:
        """The rows that the function makes of one. Raises InvalidRow."""
        if not isinstance(row, dict):
            raise InvalidRow("expected a JSON object")
        keys = ", ".join(row)  # before the call, which may change the row
        try:
            result = self.function(row)
            # A generator runs here; one row may stand without the list.
            is_one = isinstance(result, (Mapping, str)) or not isinstance(result, Iterable)
            rows = [result] if is_one else list(result)
        except InvalidRow as error:
            raise InvalidRow(f"{self.path}: {error}") from None
        except Exception as error:  # whatever the user's code raises is about this row
            reason = describe_error(error)
            raise InvalidRow(f"{self.path}: {reason}; the row has the keys {keys}") from error
        for one in rows:
            if not isinstance(one, Mapping):
                raise InvalidRow(
                    f"{self.path}: expected a list of rows (empty: leave the row out), found {one!r:.80}"
                )
        return [dict(one) for one in rows]
