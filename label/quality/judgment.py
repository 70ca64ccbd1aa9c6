"""One ranking by one person, as the figures of quality see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Judgment:
    labeler: str
    item: str
    ranks: tuple[int, ...]
    """Of the K responses, in the item's own order: 1 is best, equal for ties."""
    order: tuple[int, ...] = ()
    """The responses in the order in which they were shown; empty where that is not known."""
    words: tuple[int, ...] = ()
    """Of each response; empty where that is not known."""
    prompt_words: int = 0
    active_ms: int = 0
    """Time with the page visible and in use; 0 where that is not known."""
    likert: tuple[int | None, ...] = ()
    """Rating of each response from 1 to 7; empty without ratings."""
    time: float = 0.0
    """When, in seconds since 1970."""
    policies: tuple[str, ...] = ()
    """Which policy gave each response; empty where that is not known."""
    gold: tuple[int, ...] = ()
    """Ranks of the known answer; empty where the item is no gold item."""
    earlier: tuple[int, ...] = ()
    """What the same person ranked the same responses before; empty where the item is no repeat."""

    @staticmethod
    def from_row(row: Mapping[str, Any], gold: Sequence[int] = (), earlier: Sequence[int] = ()) -> Judgment:
        """Of a row of an export. Keys but "ranks" and "responses" may be missing."""
        prompt = row.get("prompt") or ""
        if not isinstance(prompt, str):
            prompt = " ".join(str(message["content"]) for message in prompt)
        policies = []
        for policy in row.get("policy") or ():
            policies.append(f"{policy['model']} {policy['version']}")
        return Judgment(
            labeler=str(row.get("labeler") or ""),
            item=str(row.get("item") or prompt),
            ranks=tuple(row["ranks"]),
            order=tuple(row.get("order") or ()),
            words=tuple(len(response.split()) for response in row["responses"]),
            prompt_words=len(prompt.split()),
            active_ms=int(row.get("active_ms") or 0),
            likert=tuple(row.get("likert") or ()),
            time=float(row.get("time") or 0),
            policies=tuple(policies),
            gold=tuple(gold),
            earlier=tuple(earlier),
        )

    def shown_ranks(self) -> tuple[int, ...]:
        """Ranks in the order in which the responses were shown."""
        return tuple(self.ranks[place] for place in self.order)

    def shown_likert(self) -> tuple[int | None, ...]:
        if len(self.likert) != len(self.order):
            return ()
        return tuple(self.likert[place] for place in self.order)
