"""Cuts a batch of ragged sequences into micro-batches by token count, balanced over ranks, and lays each out in rows.

Every learner rank calls this with the same lengths and gets the same plan, so no rank waits for another's word.
All ranks get the same number of micro-batches (a collective runs in each backward pass under ZeRO); where there
are fewer sequences than that, some micro-batches are empty. A row holds one sequence and its padding or, packed,
several sequences one after the other, told apart by position ids that start again at 0.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError

# A packed row is so many times its longest sequence: few leave the rows uneven, many make attention dear.
SHORTEST_ROW, LONGEST_ROW = 3, 6


def plan_micro_batches(
    lengths: Sequence[int] | np.ndarray, ranks: int, budget: int, packing: bool = False
) -> list[list[list[int]]]:
    """`plan[rank][micro]` is a list of sequence indices whose padded size is at most `budget` tokens.

    Sequences of like length share a micro-batch, so little is padded; packed, each has long and short ones, which fill
    rows evenly. The ranks' token sums are near each other. Raises UserError if one sequence alone is over the budget.
    """
    lengths = np.asarray(lengths)
    if len(lengths) and lengths.max() > budget:
        raise UserError(
            f"a sequence of {lengths.max()} tokens does not fit learners.micro_batch_tokens={budget}; raise it"
        )
    order = np.argsort(-lengths, kind="stable")
    rounds = max(1, -(-int(lengths.sum()) // (ranks * budget)))
    while True:
        chunks = (
            balance_bins(lengths, ranks * rounds)
            if packing
            else split_contiguous(lengths, order, ranks * rounds)
        )
        if all(len(c) == 0 or _size(lengths[c], assign_rows(lengths[c], packing)) <= budget for c in chunks):
            break
        rounds += 1
    chunks.sort(key=lambda c: -int(lengths[c].sum()))
    plan: list[list[list[int]]] = [[] for _ in range(ranks)]
    for start in range(0, len(chunks), ranks):
        lightest_first = sorted(range(ranks), key=lambda r: sum(int(lengths[c].sum()) for c in plan[r]))
        for rank, chunk in zip(lightest_first, chunks[start : start + ranks], strict=True):
            plan[rank].append([int(i) for i in chunk])
    return plan


def split_contiguous(lengths: np.ndarray, order: np.ndarray, count: int) -> list[np.ndarray]:
    """`order` in `count` runs of about equal token sums (some empty if there are fewer sequences)."""
    running = np.cumsum(lengths[order])
    total = running[-1] if len(running) else 0
    edges = np.searchsorted(running, total * np.arange(1, count) / count, side="right")
    return np.split(order, edges)


def balance_bins(lengths: np.ndarray, count: int) -> list[np.ndarray]:
    """All sequences in `count` lots of about equal token sums: the longest first, each to the lot that has least."""
    lots: list[list[int]] = [[] for _ in range(count)]
    sums = [(0, lot) for lot in range(count)]
    for i in np.argsort(-lengths, kind="stable").tolist():
        least, lot = sums[0]
        lots[lot].append(i)
        heapq.heapreplace(sums, (least + int(lengths[i]), lot))
    return [np.array(lot, dtype=np.int64) for lot in lots]


def _size(lengths: np.ndarray, rows: Sequence[Sequence[int] | np.ndarray]) -> int:
    """Tokens of a micro-batch in these rows, with its padding."""
    return max(int(lengths[row].sum()) for row in rows) * len(rows)


def assign_rows(lengths: Sequence[int] | np.ndarray, packing: bool) -> list[list[int]]:
    """Which sequences of a micro-batch share a row: each has its own or, packed, they fill rows of about equal length, as
    many as leave least padding. Sequences that are equally long need no packing."""
    lengths = np.asarray(lengths)
    if not packing or not len(lengths) or lengths.min() == lengths.max():
        return [[i] for i in range(len(lengths))]
    total, longest = int(lengths.sum()), int(lengths.max())
    counts = range(-(-total // (LONGEST_ROW * longest)), -(-total // (SHORTEST_ROW * longest)) + 1)
    rows = min((balance_bins(lengths, count) for count in counts), key=lambda rows: _size(lengths, rows))
    return [row.tolist() for row in rows]


def concat_pad(rows: Sequence[Sequence[np.ndarray]], fill: int | bool) -> Tensor:
    """(R, T): the arrays of each row one after the other, then `fill`; int64, or bool where `fill` is. No rows give one of
    one `fill`, so that a rank without work still runs the same forward and backward as the others."""
    lengths = [sum(map(len, row)) for row in rows]
    joined_RT = torch.full((max(1, len(rows)), max([1, *lengths])), fill)
    for r, row in enumerate(rows):
        joined_RT[r, : lengths[r]] = torch.from_numpy(np.concatenate(row)).to(joined_RT.dtype)
    return joined_RT


def positions(rows: Sequence[Sequence[np.ndarray]]) -> Tensor:
    """Position ids (R, T) of rows laid out by `concat_pad`: each sequence counts from 0."""
    counted_RT = concat_pad([[np.ones(len(s), dtype=bool) for s in row] for row in rows], False)
    starts_RT = concat_pad([[np.arange(len(s)) == 0 for s in row] for row in rows], False)
    return position_ids(counted_RT, starts_RT)


def position_ids(mask_RT: Tensor, starts_RT: Tensor | None = None) -> Tensor:
    """How many real tokens (mask 1) come before each place of its row, or before it since the last start: int64 (R, T).

    For rows padded on the left or inside this is what Hugging Face models expect ("The N implementation details of RLHF
    with PPO", detail 3).
    """
    before_RT = mask_RT.long().cumsum(1) - mask_RT.long()
    if starts_RT is None:
        return before_RT
    return before_RT - torch.where(starts_RT, before_RT, 0).cummax(1).values


@dataclass(frozen=True)
class PackedBatch:
    """A micro-batch as a forward pass takes it."""

    order: list[int]
    """Which sequence comes first, second, … when rows are read one after the other."""
    tokens_RT: Tensor
    """int64. Sequences and padding."""
    target_mask_RT: Tensor
    """bool. Tokens that the caller marked."""
    positions_RT: Tensor | None
    """Position ids where rows are shared."""


def pack(
    sequences: Sequence[np.ndarray], chosen: Sequence[np.ndarray], pad_token: int, packing: bool = False
) -> PackedBatch:
    """Puts sequences, and a bool array over the tokens of each, into rows."""
    rows = assign_rows([len(s) for s in sequences], packing)
    tokens, marks = ([[arrays[i] for i in row] for row in rows] for arrays in (sequences, chosen))
    shared = any(len(row) > 1 for row in rows)
    order = [i for row in rows for i in row]
    return PackedBatch(
        order, concat_pad(tokens, pad_token), concat_pad(marks, False), positions(tokens) if shared else None
    )


def pad(sequences: Sequence[np.ndarray], pad_token: int) -> Tensor:
    """int64 (B, T): each sequence in its own row, padded on the right."""
    return concat_pad([[s] for s in sequences], pad_token)
