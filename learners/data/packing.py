"""Lays the sequences of a micro-batch out in the rows of one forward pass.

A row holds one sequence and its padding or, packed, several sequences one after the other, told
apart by position ids that start again at 0. Responses to one prompt can share it: the prompt stands
in the row once, each response after it counts its positions from the prompt's end, and an attention
mask lets a response see the prompt and itself alone. The forward pass then gives every token what it
gives it in a row of its own, without computing the prompt once for each response.

    one row, two prompts with 2 and 1 responses   p p p a a b b b q q c
    positions                                     0 1 2 3 4 3 4 5 0 1 2
    the token before                              - 0 1 2 3 2 5 6 - 8 9

`learners.data.batching` decides which sequences make a micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from learners.data.batching import assign_rows, group_by_prompt, group_length


@dataclass(frozen=True)
class PackedBatch:
    """A micro-batch of S sequences as a forward pass takes it; N of its tokens are targets."""

    order: list[int]
    """Which sequence comes first, second, … when rows are read one after the other."""
    tokens_RT: Tensor
    """int64. Sequences and padding."""
    target_mask_RT: Tensor
    """bool. Tokens that the caller marked."""
    before_N: Tensor
    """int64. Where, in the rows one after the other, the token before each target stands."""
    last_S: Tensor
    """int64. Where, in the rows one after the other, the last token of each sequence stands, in
    `order`."""
    num_tokens: int
    """Tokens in the rows, without padding."""
    positions_RT: Tensor | None = None
    """Position ids, where a row holds several sequences."""
    attention_RTT: Tensor | None = None
    """bool: which tokens (last axis) a token attends to, where sequences share a prompt. Otherwise a
    model's own causal attention is right."""

    def to(self, device: torch.device) -> PackedBatch:
        moved = {}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                value = value.to(device)
            moved[name] = value
        return PackedBatch(**moved)


def pack(
    sequences: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    pad_token: int,
    span: float | None = None,
    prompt_lengths: Sequence[int] | np.ndarray | None = None,
) -> PackedBatch:
    """Puts sequences, and a bool mask over the tokens of each, into rows (`span`: `learners.data.batching`).
    With `prompt_lengths`, those that begin with the same prompt share it; then no token of a prompt may be
    marked.

    Without sequences there is one row of one padding token, so that a rank without work still runs
    the same forward and backward pass as the others."""
    groups = [[i] for i in range(len(sequences))]
    if prompt_lengths is not None:
        groups = group_by_prompt(sequences, prompt_lengths, span)
    is_shared = len(groups) < len(sequences)
    sizes = []
    for group in groups:
        prompt_length = 0
        if prompt_lengths is not None:
            prompt_length = int(prompt_lengths[group[0]])
        sizes.append(group_length([len(sequences[i]) for i in group], prompt_length))
    rows = assign_rows(sizes, span)
    width = max([1, *[sum(sizes[g] for g in row) for row in rows]])
    layout = _Layout(max(1, len(rows)), width, pad_token)
    for r, row in enumerate(rows):
        layout.start_row(r)
        for g in row:
            layout.add_group(groups[g], sequences, masks, prompt_lengths)
    return layout.batch(is_shared)


class _Layout:
    """The arrays of a micro-batch, filled row by row from the left."""

    def __init__(self, rows: int, width: int, pad_token: int) -> None:
        self.width = width
        self.tokens_RT = np.full((rows, width), pad_token, dtype=np.int64)
        self.targets_RT = np.zeros((rows, width), dtype=bool)
        self.positions_RT = np.zeros((rows, width), dtype=np.int64)
        self.before_RT = np.zeros((rows, width), dtype=np.int64)
        # Padding is group -1, whose tokens see one another: a token that sees none would be nan.
        self.group_RT = np.full((rows, width), -1)
        self.branch_RT = np.zeros((rows, width), dtype=np.int64)
        """0 on prompts, which all responses of a group see; else the number of the response."""
        self.order: list[int] = []
        self.last: list[int] = []
        self.groups = 0
        self.most_in_a_row = 0

    def start_row(self, r: int) -> None:
        self.r, self.at, self.in_row = r, 0, 0

    def add_group(
        self,
        group: Sequence[int],
        sequences: Sequence[np.ndarray],
        masks: Sequence[np.ndarray],
        prompt_lengths: Sequence[int] | np.ndarray | None,
    ) -> None:
        prompt, prompt_end = 0, self.r * self.width + self.at
        if prompt_lengths is not None:
            prompt = int(prompt_lengths[group[0]])
            prompt_end += prompt - 1
        for branch, i in enumerate(group, 1):
            # Only the first sequence of a group brings the prompt.
            start = 0 if branch == 1 else prompt
            end = self.at + len(sequences[i]) - start
            place = (self.r, slice(self.at, end))
            first = self.r * self.width + self.at
            self.tokens_RT[place] = sequences[i][start:]
            self.targets_RT[place] = masks[i][start:]
            self.positions_RT[place] = np.arange(start, len(sequences[i]))
            self.before_RT[place] = np.arange(first - 1, first - 1 + end - self.at)
            self.group_RT[place] = self.groups
            self.branch_RT[place] = branch
            if start:
                self.before_RT[self.r, self.at] = prompt_end
            else:
                self.branch_RT[self.r, self.at : self.at + prompt] = 0
            self.order.append(i)
            self.last.append(self.r * self.width + end - 1)
            self.at = end
            self.in_row += 1
        self.groups += 1
        self.most_in_a_row = max(self.most_in_a_row, self.in_row)

    def batch(self, is_shared: bool) -> PackedBatch:
        positions_RT, attention_RTT = None, None
        # Without position ids a model counts from the start of the row: right for one sequence a row.
        if self.most_in_a_row > 1:
            positions_RT = torch.from_numpy(self.positions_RT)
        if is_shared:
            attention_RTT = torch.from_numpy(self._attention())
        return PackedBatch(
            order=self.order,
            tokens_RT=torch.from_numpy(self.tokens_RT),
            target_mask_RT=torch.from_numpy(self.targets_RT),
            before_N=torch.from_numpy(self.before_RT[self.targets_RT]),
            last_S=torch.tensor(self.last, dtype=torch.int64),
            num_tokens=int((self.group_RT >= 0).sum()),
            positions_RT=positions_RT,
            attention_RTT=attention_RTT,
        )

    def _attention(self) -> np.ndarray:
        """bool (R, T, T): a token sees those of its group before it, of the prompt or of its own
        response."""
        same_group_RTT = self.group_RT[:, :, None] == self.group_RT[:, None, :]
        is_prompt_R1T = self.branch_RT[:, None, :] == 0
        same_branch_RTT = self.branch_RT[:, :, None] == self.branch_RT[:, None, :]
        is_before_TT = np.tri(self.width, dtype=bool)
        return same_group_RTT & (is_prompt_R1T | same_branch_RTT) & is_before_TT


def pad(sequences: Sequence[np.ndarray], pad_token: int) -> Tensor:
    """int64 (B, T): each sequence in its own row, padded on the right."""
    return pack(sequences, [np.zeros(len(sequence), bool) for sequence in sequences], pad_token).tokens_RT
