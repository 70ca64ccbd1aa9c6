"""Cuts a batch of ragged sequences into micro-batches by token count, balanced over ranks, and pads each.

Every learner rank calls this with the same lengths and gets the same plan, so no rank waits for another's word.
All ranks get the same number of micro-batches (a collective runs in each backward pass under ZeRO); where there
are fewer sequences than that, some micro-batches are empty.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from learners.errors import UserError


def plan_micro_batches(lengths: Sequence[int] | np.ndarray, ranks: int, budget: int) -> list[list[list[int]]]:
    """`plan[rank][micro]` is a list of sequence indices whose padded size is at most `budget` tokens.

    Sequences of like length share a micro-batch, so little is padded; the micro-batches are dealt out so that the
    ranks' token sums are near each other. Raises UserError if one sequence alone is over the budget.
    """
    lengths = np.asarray(lengths)
    if len(lengths) and lengths.max() > budget:
        raise UserError(
            f"a sequence of {lengths.max()} tokens does not fit learners.micro_batch_tokens={budget}; raise it"
        )
    order = np.argsort(-lengths, kind="stable")
    rounds = max(1, -(-int(lengths.sum()) // (ranks * budget)))
    while True:
        chunks = _cut(lengths, order, ranks * rounds)
        if all(len(c) == 0 or lengths[c].max() * len(c) <= budget for c in chunks):
            break
        rounds += 1
    chunks.sort(key=lambda c: -int(lengths[c].sum()))
    plan: list[list[list[int]]] = [[] for _ in range(ranks)]
    for start in range(0, len(chunks), ranks):
        lightest_first = sorted(range(ranks), key=lambda r: sum(int(lengths[c].sum()) for c in plan[r]))
        for rank, chunk in zip(lightest_first, chunks[start : start + ranks], strict=True):
            plan[rank].append([int(i) for i in chunk])
    return plan


def _cut(lengths: np.ndarray, order: np.ndarray, count: int) -> list[np.ndarray]:
    """`order` in `count` runs of about equal token sums (some empty if there are fewer sequences)."""
    running = np.cumsum(lengths[order])
    total = running[-1] if len(running) else 0
    edges = np.searchsorted(running, total * np.arange(1, count) / count, side="right")
    return np.split(order, edges)


def pad(sequences: Sequence[np.ndarray], pad_token: int) -> Tensor:
    """int64 (B, T): sequences padded on the right. An empty list gives one row of one pad token, so that a rank
    without work still runs the same forward and backward as the others."""
    if not sequences:
        return torch.full((1, 1), pad_token, dtype=torch.int64)
    tokens_BT = torch.full((len(sequences), max(len(s) for s in sequences)), pad_token, dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        tokens_BT[row, : len(sequence)] = torch.from_numpy(np.asarray(sequence, dtype=np.int64))
    return tokens_BT
