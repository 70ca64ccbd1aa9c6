"""What people flagged: the reward model is measured on it apart, since that is where prompts and responses
are not what it has mostly learned from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from label.vocabulary import OBJECTIONS

Row = dict[str, Any]
FLAGGED = "flagged"
"""Key of a ranking: yes or no."""


def mark_flagged(rows: Sequence[Row]) -> list[Row]:
    """Rankings with FLAGGED: yes if somebody who ranked the item objected to its prompt or to one of its
    responses (`label.vocabulary.OBJECTIONS`)."""
    items = {row["item"] for row in rows if _objections(row)}
    marked = []
    for row in rows:
        marked.append({**row, FLAGGED: "yes" if row["item"] in items else "no"})
    return marked


def _objections(row: Row) -> frozenset[str]:
    lists = [row.get("prompt_flags") or [], *(row.get("flags") or [])]
    return OBJECTIONS & {flag for flags in lists for flag in flags}


def flagged_accuracy(matrix: Row | None) -> Row | None:
    """The newest reward model's accuracy on the flagged held-out pairs of all rounds: `value` and `pairs`.
    None where nothing held out was flagged."""
    if not matrix:
        return None
    cells = []
    for column, cell in zip(matrix["columns"], matrix["rows"][-1]["cells"], strict=True):
        if column.endswith(f"{FLAGGED} yes"):
            cells.append(cell)
    pairs = sum(cell["pairs"] for cell in cells)
    if not pairs:
        return None
    return {"value": sum(cell["value"] * cell["pairs"] for cell in cells) / pairs, "pairs": pairs}
