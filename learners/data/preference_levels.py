"""How strongly a labeler prefers one response to another, beside their order: for the margin of the ranking
loss (`reward_model.margin_from`)."""

from __future__ import annotations

import math
from typing import Literal

from learners.data.conversations import InvalidRow
from learners.data.records import RankingRecord

MarginFrom = Literal["rank", "likert", "strength"]


def preference_levels(record: RankingRecord, margin_from: MarginFrom) -> list[float]:
    """A number for each response, so that the difference of two is the strength of the preference; nan
    where the labeler said nothing, and everywhere with margins from ranks.

    likert: the rating, 1 to 7. strength, of two responses: 0 and how much better the first is, -3 to 3.
    Raises InvalidRow for values of another kind."""
    unknown = [math.nan] * len(record.responses)
    if margin_from == "rank":
        return unknown
    value = record.value_of(margin_from)
    if value is None:
        return unknown
    if margin_from == "strength":
        if isinstance(value, bool) or not isinstance(value, (int, float)) or len(unknown) != 2:
            raise InvalidRow("key 'strength': expected a number from -3 to 3 beside two responses")
        return [float(value), 0.0]
    if not isinstance(value, list) or len(value) != len(unknown):
        raise InvalidRow(f"key 'likert': expected {len(unknown)} ratings from 1 to 7, or null")
    return [math.nan if rating is None else float(rating) for rating in value]
