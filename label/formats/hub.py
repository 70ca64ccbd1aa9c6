"""A folder that Hugging Face `datasets` loads and its hub shows: Parquet and a card.

rankings/train.parquet   a label in each row, with its whole row as JSON in column `row`
pairs/train.parquet      prompt, chosen, rejected as messages, and the margin in places
README.md                licence, guidelines, consent, agreement"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.files import atomic_path, write_text
from label.formats.grouping import by_item
from label.formats.pairs import pairs_of
from label.formats.reading import Entries, an_object
from label.formats.rows import InvalidRow, Row, as_messages
from label.quality.judgment import Judgment
from label.quality.team import team_quality

TABLES = ("rankings", "pairs")
FIGURES = {"agreement": "pair agreement without ties", "alpha_ordinal": "Krippendorff's alpha, ordinal"}


def entries(path: Path) -> Entries:
    import pyarrow.parquet

    file = path
    if path.is_dir():
        file = path / "rankings" / "train.parquet"
    for number, record in enumerate(pyarrow.parquet.read_table(file).to_pylist(), 1):
        yield f"{file}, row {number}", record


def rows(value: Any) -> Iterator[Row]:
    record = an_object(value)
    try:
        yield an_object(json.loads(record["row"]))
    except (KeyError, TypeError, json.JSONDecodeError):
        raise InvalidRow("key 'row': expected the label as JSON, as this program writes it") from None


def write(rows: Sequence[Row], path: Path) -> Counter[str]:
    import pyarrow
    import pyarrow.parquet

    labels = [row for row in rows if "ranks" in row]
    pairs = [pair for row in labels for pair in _pairs(row)]
    tables = {"rankings": [_ranking(row) for row in labels], "pairs": pairs}
    schemas = _schemas()
    with atomic_path(path) as partial:
        for name in TABLES:
            (partial / name).mkdir(parents=True)
            table = pyarrow.Table.from_pylist(tables[name], schemas[name])
            pyarrow.parquet.write_table(table, partial / name / "train.parquet")
        write_text(partial / "README.md", card(labels, len(pairs)))
    counts = Counter(rows=len(labels), pairs=len(pairs))
    if len(labels) < len(rows):
        counts["without ranks"] = len(rows) - len(labels)
    return counts


def _schemas() -> dict[str, Any]:
    import pyarrow as pa

    text, whole = pa.string(), pa.int64()
    messages = pa.list_(pa.struct([("role", text), ("content", text)]))
    rankings = [
        ("prompt", messages),
        ("responses", pa.list_(text)),
        ("ranks", pa.list_(whole)),
        ("likert", pa.list_(whole)),
        ("flags", pa.list_(pa.list_(text))),
        ("labeler", text),
        ("row", text),
    ]
    pairs = [("prompt", messages), ("chosen", messages), ("rejected", messages), ("margin", whole)]
    return {"rankings": pa.schema(rankings), "pairs": pa.schema(pairs)}


def _messages(row: Row) -> list[dict[str, str]]:
    return [{"role": one["role"], "content": one["content"]} for one in as_messages(row["prompt"])]


def _ranking(row: Row) -> dict[str, Any]:
    columns = {key: row.get(key) for key in ("responses", "ranks", "likert", "flags", "labeler")}
    return {"prompt": _messages(row), **columns, "row": json.dumps(row)}


def _pairs(row: Row) -> Iterator[dict[str, Any]]:
    for pair in pairs_of(row):
        if pair.margin > 0:
            chosen, rejected = row["responses"][pair.better], row["responses"][pair.worse]
            yield {
                "prompt": _messages(row),
                "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": rejected}],
                "margin": pair.margin,
            }


def card(labels: Sequence[Row], pairs: int) -> str:
    """The README with the front matter by which `datasets` finds the two tables."""
    configs = []
    for name in TABLES:
        configs += [f"- config_name: {name}", "  data_files:", "  - split: train"]
        configs.append(f"    path: {name}/train.parquet")
    front = ["---", "license: other", "task_categories:", "- text-generation", "configs:", *configs, "---"]
    people = {row.get("labeler") for row in labels}
    versions = {key: _values(labels, key) for key in ("guideline", "consent", "group", "batch")}
    text = [
        "# Labels of people",
        "",
        f"{len(labels)} rankings of {len(by_item(labels))} prompts by {len(people)} people, {pairs} pairs.",
        "People are pseudonyms. State the licence of prompts and responses before publishing.",
        "",
    ]
    text += [f"- {key}: {values}" for key, values in versions.items() if values]
    text += [f"- {line}" for line in _agreement(labels)]
    return "\n".join([*front, "", *text, ""])


def _values(labels: Sequence[Row], key: str) -> str:
    return ", ".join(sorted({str(row[key]) for row in labels if row.get(key) is not None}))


def _agreement(labels: Sequence[Row]) -> Iterator[str]:
    judgments = []
    for group in by_item(labels):
        item = json.dumps([group[0]["prompt"], group[0]["responses"]])
        judgments += [Judgment.from_row({**row, "item": item, "policy": None}) for row in group]
    figures = team_quality(judgments, np.random.default_rng(0))
    for key, name in FIGURES.items():
        figure = figures[key]
        line = f"{name}: {figure['value'] or 0:.3f}"
        if figure["value"] is None:
            line = f"{name}: undefined ({figure['why']})"
        elif figure["low"] is not None:
            line += f" [{figure['low']:.3f}, {figure['high']:.3f}]"
        yield f"{line}, {figure['n']} prompts"
