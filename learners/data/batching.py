"""Cuts a batch of ragged sequences into micro-batches by token count, balanced over ranks, and
lays each out in rows.

Every learner rank calls this with the same lengths and gets the same plan, so ranks need not
agree by a message. All ranks get the same number of micro-batches (a collective runs in each
backward pass under ZeRO); where there are fewer sequences than that, some micro-batches are
empty. A row holds one sequence and its padding or, packed, several sequences one after the other,
told apart by position ids that start again at 0."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError

# Length of a packed row in multiples of its longest sequence. Shorter rows come out uneven, so
# more is padded; longer ones cost more attention, which grows with the square of the length.
SHORTEST_ROW, LONGEST_ROW = 3, 6

Plan = list[list[list[int]]]
"""plan[rank][micro] is a list of sequence indices."""


def plan_micro_batches(
    lengths: Sequence[int] | np.ndarray, ranks: int, budget: int, packing: bool = False
) -> Plan:
    """`plan[rank][micro]` is a list of sequence indices whose padded size is at most `budget`
    tokens.

    Sequences of similar length share a micro-batch, so little is padded; packed, each has long
    and short ones, which fill rows evenly. The ranks' token sums are near each other. Raises
    UserError if one sequence alone is over the budget."""
    lengths = np.asarray(lengths)
    if len(lengths) and lengths.max() > budget:
        raise UserError(
            f"a sequence of {lengths.max()} tokens does not fit "
            f"learners.micro_batch_tokens={budget}; raise it"
        )
    # The fewest micro-batches for each rank that could hold the tokens.
    rounds = max(1, _ceil_div(int(lengths.sum()), ranks * budget))
    micro_batches = _divide(lengths, ranks * rounds, packing)
    # Padding decides how many are needed, and is only known after dividing.
    while not _all_fit(lengths, micro_batches, budget, packing):
        rounds += 1
        micro_batches = _divide(lengths, ranks * rounds, packing)
    return _deal_to_ranks(lengths, micro_batches, ranks)


def _divide(lengths: np.ndarray, count: int, packing: bool) -> list[np.ndarray]:
    if packing:
        return balance_bins(lengths, count)
    return split_contiguous(lengths, np.argsort(-lengths, kind="stable"), count)


def _all_fit(lengths: np.ndarray, micro_batches: list[np.ndarray], budget: int, packing: bool) -> bool:
    for micro in micro_batches:
        if len(micro) and _padded_size(lengths[micro], assign_rows(lengths[micro], packing)) > budget:
            return False
    return True


def _deal_to_ranks(lengths: np.ndarray, micro_batches: list[np.ndarray], ranks: int) -> Plan:
    """Largest micro-batches first, one to each rank in every turn, the larger to the rank that
    has less so far."""
    tokens = [int(lengths[micro].sum()) for micro in micro_batches]
    largest_first = sorted(range(len(micro_batches)), key=lambda i: -tokens[i])
    plan: Plan = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for start in range(0, len(largest_first), ranks):
        # Dealing in turns gives every rank equally many, and this order makes up for differences.
        lightest_first = sorted(range(ranks), key=lambda rank: loads[rank])
        for rank, i in zip(lightest_first, largest_first[start : start + ranks], strict=True):
            plan[rank].append(micro_batches[i].tolist())
            loads[rank] += tokens[i]
    return plan


def split_contiguous(lengths: np.ndarray, order: np.ndarray, count: int) -> list[np.ndarray]:
    """`order` in `count` runs of about equal token sums (some empty if there are fewer
    sequences)."""
    running = np.cumsum(lengths[order])
    total = running[-1] if len(running) else 0
    edges = np.searchsorted(running, total * np.arange(1, count) / count, side="right")
    return np.split(order, edges)


def balance_bins(lengths: np.ndarray, count: int) -> list[np.ndarray]:
    """All sequences in `count` bins of about equal token sums: the longest first, each to the bin
    that has least."""
    bins: list[list[int]] = [[] for _ in range(count)]
    # The lightest bin is at the top; equal ones by their index, so that every rank does the same.
    heap = [(0, index) for index in range(count)]
    for i in np.argsort(-lengths, kind="stable").tolist():
        least, index = heap[0]
        bins[index].append(i)
        heapq.heapreplace(heap, (least + int(lengths[i]), index))
    return [np.array(members, dtype=np.int64) for members in bins]


def _padded_size(lengths: np.ndarray, rows: Sequence[Sequence[int] | np.ndarray]) -> int:
    """Tokens of a micro-batch in these rows, with its padding."""
    longest = max(int(lengths[row].sum()) for row in rows)
    return longest * len(rows)


def assign_rows(lengths: Sequence[int] | np.ndarray, packing: bool) -> list[list[int]]:
    """Which sequences of a micro-batch share a row: each has its own or, packed, they fill rows
    of about equal length, as many as leave least padding. Sequences that are equally long need no
    packing."""
    lengths = np.asarray(lengths)
    if not packing or not len(lengths) or lengths.min() == lengths.max():
        return [[i] for i in range(len(lengths))]
    total, longest = int(lengths.sum()), int(lengths.max())
    fewest = _ceil_div(total, LONGEST_ROW * longest)
    most = _ceil_div(total, SHORTEST_ROW * longest)
    layouts = [balance_bins(lengths, count) for count in range(fewest, most + 1)]
    best = min(layouts, key=lambda rows: _padded_size(lengths, rows))
    return [row.tolist() for row in best]


def concat_pad(rows: Sequence[Sequence[np.ndarray]], fill: int | bool) -> Tensor:
    """(R, T): the arrays of each row one after the other, then `fill`; int64, or bool where
    `fill` is. No rows give one of one `fill`, so that a rank without work still runs the same
    forward and backward as the others."""
    lengths = [sum(map(len, row)) for row in rows]
    joined_RT = torch.full((max(1, len(rows)), max([1, *lengths])), fill)
    for r, row in enumerate(rows):
        joined_RT[r, : lengths[r]] = torch.from_numpy(np.concatenate(row)).to(joined_RT.dtype)
    return joined_RT


def positions(rows: Sequence[Sequence[np.ndarray]]) -> Tensor:
    """Position ids (R, T) of rows laid out by `concat_pad`: each sequence counts from 0."""
    is_token, is_start = [], []
    for row in rows:
        lengths = [len(sequence) for sequence in row]
        starts = np.zeros(sum(lengths), dtype=bool)
        starts[np.cumsum([0, *lengths[:-1]])] = True
        is_start.append([starts])
        is_token.append([np.ones(sum(lengths), dtype=bool)])
    return position_ids(concat_pad(is_token, False), concat_pad(is_start, False))


def position_ids(mask_RT: Tensor, starts_RT: Tensor | None = None) -> Tensor:
    """How many real tokens (mask 1) come before each position of its row, or before it since the
    last start: int64 (R, T).

    For rows padded on the left or inside this is what Hugging Face models expect ("The N
    implementation details of RLHF with PPO", detail 3)."""
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

    def to(self, device: torch.device) -> PackedBatch:
        positions_RT = self.positions_RT
        if positions_RT is not None:
            positions_RT = positions_RT.to(device)
        return PackedBatch(
            self.order, self.tokens_RT.to(device), self.target_mask_RT.to(device), positions_RT
        )


def pack(
    sequences: Sequence[np.ndarray], masks: Sequence[np.ndarray], pad_token: int, packing: bool = False
) -> PackedBatch:
    """Puts sequences, and a bool mask over the tokens of each, into rows."""
    rows = assign_rows([len(sequence) for sequence in sequences], packing)
    order, tokens, targets = [], [], []
    for row in rows:
        order += row
        tokens.append([sequences[i] for i in row])
        targets.append([masks[i] for i in row])
    positions_RT = None
    # Without position ids a model counts from the start of the row: right for one sequence a row.
    if any(len(row) > 1 for row in rows):
        positions_RT = positions(tokens)
    return PackedBatch(order, concat_pad(tokens, pad_token), concat_pad(targets, False), positions_RT)


def pad(sequences: Sequence[np.ndarray], pad_token: int) -> Tensor:
    """int64 (B, T): each sequence in its own row, padded on the right."""
    return concat_pad([[sequence] for sequence in sequences], pad_token)


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)
