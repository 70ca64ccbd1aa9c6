"""Labels of the same responses together, as formats with one record for an item need them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from label.formats.rows import Row


def by_item(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows with the same prompt and the same responses, in the order of their first row."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        key = json.dumps([row["prompt"], row["responses"]])
        groups.setdefault(key, []).append(row)
    return list(groups.values())
