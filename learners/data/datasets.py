"""What the supervised stages learn from, as flat token arrays on disk, made once by the driver and read by every rank.

`learners.data.encoding` makes them. What is held out for validation is decided there too, so that every rank agrees.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import numpy as np


class _Arrays:
    """Saves and loads a dataclass of numpy arrays as one .npz file."""

    def save(self, path: Path) -> None:
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, **{f.name: getattr(self, f.name) for f in fields(self)})  # type: ignore[arg-type]
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        with np.load(path) as arrays:
            return cls(**{f.name: arrays[f.name] for f in fields(cls)})  # type: ignore[arg-type]


@dataclass
class TokenData(_Arrays):
    """Sequences with a mask of the tokens to learn."""

    tokens_N: np.ndarray
    """int32. All sequences, one after the other."""
    offsets: np.ndarray
    """int64 (S + 1). Where each starts."""
    loss_mask_N: np.ndarray
    """bool. Tokens whose log-probability enters the loss; never the first of a sequence."""
    is_validation_S: np.ndarray
    """bool. Sequences that are kept for validation."""

    @property
    def lengths_S(self) -> np.ndarray:
        return np.diff(self.offsets)

    def sequence(self, s: int) -> np.ndarray:
        return self.tokens_N[self.offsets[s] : self.offsets[s + 1]]

    def loss_mask(self, s: int) -> np.ndarray:
        return self.loss_mask_N[self.offsets[s] : self.offsets[s + 1]]


@dataclass
class RankingData(_Arrays):
    """Ranked responses: S different sequences (prompt and response) in G groups of one prompt each, and R rankings; a
    ranking orders some or all sequences of a group (a preference pair orders two)."""

    tokens_N: np.ndarray
    """int32. All sequences."""
    offsets: np.ndarray
    """int64 (S + 1)."""
    groups: np.ndarray
    """int64 (G + 1). Group g holds sequences groups[g] to groups[g + 1]."""
    members_M: np.ndarray
    """int32. The sequences that each ranking orders, by their place in the group, one ranking after the other; the same
    sequence twice where a policy gave the same response twice."""
    ranks_M: np.ndarray
    """int32. The rank of each (1 best, equal for ties)."""
    ranking_offsets: np.ndarray
    """int64 (R + 1). Where each ranking starts in M."""
    ranking_groups_R: np.ndarray
    """int32. The group that each ranking orders; rankings are sorted by group."""
    truth: np.ndarray
    """int32 (S,) or empty. Ranks within the group by a judge that knows the truth: for measuring only."""
    owner_G: np.ndarray
    """int32. Whose prompt each group is: groups of one owner are on one side of every split."""
    is_validation_G: np.ndarray
    """bool. Groups that are kept for validation."""

    def group(self, g: int) -> list[np.ndarray]:
        return [
            self.tokens_N[self.offsets[s] : self.offsets[s + 1]]
            for s in range(self.groups[g], self.groups[g + 1])
        ]

    def rankings(self) -> list[list[tuple[list[int], list[int]]]]:
        """rankings()[g] is the list of (members, ranks) of group g."""
        found: list[list[tuple[list[int], list[int]]]] = [[] for _ in range(len(self.groups) - 1)]
        for r, g in enumerate(self.ranking_groups_R):
            part = slice(self.ranking_offsets[r], self.ranking_offsets[r + 1])
            found[g].append((self.members_M[part].tolist(), self.ranks_M[part].tolist()))
        return found


def hold_out(owners: Sequence[Hashable], share: float, seed: int, fold: int = 0) -> np.ndarray:
    """bool, one per item: about `share` of the items, at least one, drawn by owner, so that all items of an owner (a user)
    are on one side. Folds 0, 1, … of the same share are different items."""
    places: dict[Hashable, int] = {}
    owner_I = np.array([places.setdefault(owner, len(places)) for owner in owners])
    sizes = np.bincount(owner_I)
    order = np.random.default_rng(seed).permutation(len(sizes))
    starts = np.cumsum(sizes[order]) - sizes[order]
    first, last = (round(share * len(owner_I) * f) for f in (fold, fold + 1))
    held = np.zeros(len(sizes), dtype=bool)
    held[order[(starts >= first) & (starts < max(last, first + 1))]] = True
    held[order[-1]] &= not held.all()  # somebody must be left to learn from
    return held[owner_I]
