"""What the supervised stages learn from, as flat token arrays on disk, made once by the driver
and read by every rank.

`learners.data.encoding` makes them. What is held out for validation is stored in them too, so
that every rank and every later stage agrees."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import numpy as np

from common.files import atomic_path


class _Arrays:
    """Saves and loads a dataclass of numpy arrays as one .npz file."""

    def save(self, path: Path) -> None:
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        # An open file, since numpy appends .npz to names that end otherwise.
        with atomic_path(path) as partial, open(partial, "wb") as file:
            np.savez(file, **arrays)

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
    """Ranked responses: S different sequences (prompt and response) in G groups of one prompt
    each, and Q rankings. A ranking orders some or all sequences of a group (a preference pair
    orders two)."""

    tokens_N: np.ndarray
    """int32. All sequences."""
    offsets: np.ndarray
    """int64 (S + 1)."""
    groups: np.ndarray
    """int64 (G + 1). Group g holds sequences groups[g] to groups[g + 1]."""
    members_M: np.ndarray
    """int32. The sequences that each ranking orders, by their index in the group, one ranking
    after the other; the same sequence twice where a policy gave the same response twice."""
    ranks_M: np.ndarray
    """int32. The rank of each (1 best, equal for ties)."""
    levels_M: np.ndarray
    """float32. What the labeler said of each beside its rank, on a scale on which the difference of two is
    the strength of the preference (`reward_model.margin_from`); nan where nothing was said."""
    ranking_offsets: np.ndarray
    """int64 (Q + 1). Where each ranking starts in M."""
    ranking_groups_Q: np.ndarray
    """int32. The group that each ranking orders; rankings are sorted by group."""
    oracle_ranks: np.ndarray
    """int32 (S,). Ranks within the group by a judge that knows the truth, for measuring only; 0
    where it is not known."""
    weights_Q: np.ndarray
    """float32. How much each ranking counts in the loss; 1 without labeler weights."""
    tags_G: np.ndarray
    """Text. What accuracies are told apart by; groups of one prompt differ in it. Empty without tags."""
    fold_position_G: np.ndarray
    """float64. What decides in which fold of a cross-validation a group is
    (`learners.data.split.linked_positions`): equal for groups whose prompts share a value of
    `data.split_key`, directly or through other prompts."""
    is_validation_G: np.ndarray
    """bool. Groups that are kept for validation."""
    prompt_lengths_G: np.ndarray
    """int32. How many tokens that each sequence of a group begins with are its prompt."""

    def group(self, g: int) -> list[np.ndarray]:
        """The sequences of group g."""
        start, end = self.groups[g], self.groups[g + 1]
        return np.split(
            self.tokens_N[self.offsets[start] : self.offsets[end]],
            self.offsets[start + 1 : end] - self.offsets[start],
        )

    def rankings(self) -> list[list[tuple[list[int], list[int]]]]:
        """rankings()[g] is the list of (members, ranks) of group g."""
        by_group: list[list[tuple[list[int], list[int]]]] = [[] for _ in range(len(self.groups) - 1)]
        for q, g in enumerate(self.ranking_groups_Q):
            part = slice(self.ranking_offsets[q], self.ranking_offsets[q + 1])
            by_group[g].append((self.members_M[part].tolist(), self.ranks_M[part].tolist()))
        return by_group

    def levels(self) -> list[list[list[float]]]:
        """levels()[g] is the list of the levels of each ranking of group g, in the order of `rankings`."""
        by_group: list[list[list[float]]] = [[] for _ in range(len(self.groups) - 1)]
        for q, g in enumerate(self.ranking_groups_Q):
            part = slice(self.ranking_offsets[q], self.ranking_offsets[q + 1])
            by_group[g].append(self.levels_M[part].tolist())
        return by_group

    def weights(self) -> list[list[float]]:
        """weights()[g] is the list of the weights of the rankings of group g."""
        by_group: list[list[float]] = [[] for _ in range(len(self.groups) - 1)]
        for g, weight in zip(self.ranking_groups_Q, self.weights_Q.tolist(), strict=True):
            by_group[g].append(weight)
        return by_group

    def oracle_ranking(self, g: int) -> tuple[list[int], list[int]]:
        """(members, ranks) of group g by the oracle, over the members whose truth it knows (maybe
        none)."""
        ranks = self.oracle_ranks[self.groups[g] : self.groups[g + 1]]
        members = np.flatnonzero(ranks)  # 0 is no rank
        return members.tolist(), ranks[members].tolist()
