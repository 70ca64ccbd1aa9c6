"""Labels of items that were opened before the batch of their round closed."""

from __future__ import annotations

from label.store.database import AnyRow

LATE = "this round is closed already; what you gave counts in the next one"


def is_late_for_round(mine: AnyRow) -> bool:
    """Whether a label for this assignment is one for the next round, which takes it, so that no work is lost.
    Comparisons have no such round: their gate has been read."""
    is_round = mine.round > 0 and mine.purpose == "train"
    return is_round and mine.batch_state == "closed" and mine.item_state != "void" and mine.state != "skipped"
