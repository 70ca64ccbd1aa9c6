"""Ulysses sequence parallelism (Jacobs et al. 2023, arXiv:2309.14509): ranks that share the rows of a
forward pass, for sequences whose activations fit on no device.

    rows R x T, the same on every rank of a group
      -> the slice of T / n tokens of each rank     embeddings, norms, feed-forward blocks
      -> all-to-all                                 attention over all T tokens, with 1 / n of the heads
      -> all-to-all back, gather                    outputs of all T tokens on every rank

What follows on every rank of a group is computed from the same outputs, so a loss is the same there.
`gather_rows` and `join_shares` divide its gradient: each rank's parameters get a part, and the sum over
all ranks is the whole gradient, as it is without groups.

The exchange is DeepSpeed's `UlyssesSPAttentionHF`. DeepSpeed's way to install it
(`register_with_transformers`) serves one architecture, one number of rows and no masks; here the exchange
is chosen by the shape of a call, and gets the mask of the whole rows, so that policy and critic may
differ and rows may be packed. A forward pass names itself to the attention by an argument that transformers
hands through all layers, which also holds when a checkpointed layer runs again in the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ATTENTION = ("sdpa", "flash_attention_2")
"""Implementations that the exchange can stand around."""


@dataclass(frozen=True)
class SequenceGroup:
    """The ranks that share this rank's rows."""

    group: dist.ProcessGroup
    size: int
    rank: int
    """Of this process in the group."""


@dataclass(frozen=True)
class _Rows:
    """What the attention of one forward pass has to know."""

    positions_BL: Tensor
    """Position ids of this rank's slice of L tokens."""
    attention_B1TT: Tensor | None
    """bool: which tokens a token of the whole rows attends to; None: those before it."""


_state: dict[str, SequenceGroup] = {}
"""The group under "group" once this process has joined one: like the default process group, one for each
process."""


def join_sequence_groups(size: int) -> None:
    """Puts `size` consecutive ranks of the default process group in a group each; with 1 nothing changes. A
    collective."""
    _state.clear()
    _exchange.cache_clear()
    if size == 1:
        return
    for first in range(0, dist.get_world_size(), size):
        # Every rank takes part in making every group.
        group = dist.new_group(list(range(first, first + size)))
        if first <= dist.get_rank() < first + size:
            _state["group"] = SequenceGroup(group, size, dist.get_rank() - first)
    for name in ATTENTION:
        whole = ALL_ATTENTION_FUNCTIONS[name]
        if not isinstance(whole, partial):
            ALL_ATTENTION_FUNCTIONS[name] = partial(_attention, whole)


def sequence_group() -> SequenceGroup | None:
    """The group of this rank, if it shares its rows."""
    return _state.get("group")


def is_first_of_group() -> bool:
    """Whether this rank stands for its group where something is counted over all ranks."""
    group = sequence_group()
    return group is None or group.rank == 0


def own_hidden(
    model: PreTrainedModel,
    group: SequenceGroup,
    tokens_BT: Tensor,
    positions_BT: Tensor | None,
    attention_BTT: Tensor | None,
) -> Tensor:
    """(B, L, D): the output of the last layer for this rank's slice of the rows, which are filled up to a
    multiple of the group's size. `gather_rows` makes rows of the slices. The arguments are those of
    `learners.models.last_hidden`."""
    is_flash = "flash" in model.config._attn_implementation
    if is_flash and positions_BT is not None:
        tokens_BT, positions_BT = tokens_BT.view(1, -1), positions_BT.view(1, -1)
    width = tokens_BT.shape[1]
    fill = -width % group.size
    attention_B1TT: Tensor | None = None
    if attention_BTT is not None:
        attention_B1TT = _filled(attention_BTT, fill)[:, None]
    if positions_BT is None:
        positions_T = torch.arange(width + fill, device=tokens_BT.device)
        positions_BT = positions_T.expand(len(tokens_BT), -1)
    else:
        # Each of these is a sequence of its own.
        positions_BT = nn.functional.pad(positions_BT, (0, fill))
        if attention_B1TT is None and not is_flash:
            attention_B1TT = _separate(positions_BT)[:, None]
    tokens_BT = nn.functional.pad(tokens_BT, (0, fill))
    length = (width + fill) // group.size
    own = slice(group.rank * length, (group.rank + 1) * length)
    positions_BL = positions_BT[:, own].contiguous()
    output = model.base_model(
        input_ids=tokens_BT[:, own],
        position_ids=positions_BL,
        use_cache=False,
        sequence_rows=_Rows(positions_BL, attention_B1TT),
    )
    hidden_BLD: Tensor = output.last_hidden_state
    return hidden_BLD


def gather_rows(slices_BL: Tensor, shape_BT: torch.Size, is_divided: bool) -> Tensor:
    """(B, T, ...) of the rows whose slices the ranks of the group hold; without a group the slice is the row.

    `is_divided` says what follows on the ranks: with it each does its share of the work, so that gradients
    are added; else all do the same, so that each keeps the gradient of its slice."""
    group = sequence_group()
    if group is None:
        return slices_BL.view(*shape_BT, *slices_BL.shape[2:])
    parts: Tensor = _Gather.apply(slices_BL, group, is_divided)
    rows = parts.transpose(0, 1).flatten(1, 2)
    # Flash kernels have had all rows in one.
    return rows[:, : shape_BT.numel() // len(rows)].reshape(*shape_BT, *slices_BL.shape[2:])


def own_share(values_N: Tensor) -> Tensor:
    """This rank's share of N entries, as many as that of the others: the last shares are filled with 0.
    Without a group all of them."""
    group = sequence_group()
    if group is None:
        return values_N
    count = max(1, -(-len(values_N) // group.size))
    filled = nn.functional.pad(values_N, (0, count * group.size - len(values_N)))
    return filled[group.rank * count : (group.rank + 1) * count]


def join_shares(share: Tensor, count: int) -> Tensor:
    """The `count` entries whose shares the ranks of the group hold; what follows is the same on all of
    them. Without a group the share is everything."""
    group = sequence_group()
    if group is None:
        return share
    joined: Tensor = _Gather.apply(share, group, False)
    return joined.flatten()[:count]


class _Gather(torch.autograd.Function):
    """(n, ...): the tensors of all ranks of a group, which have one shape."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: SequenceGroup, is_divided: bool) -> Tensor:
        ctx.group, ctx.is_divided = group, is_divided
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(group.size)]
        dist.all_gather(parts, own.contiguous(), group=group.group)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,), group = gradients, ctx.group
        if not ctx.is_divided:
            return gradient[group.rank], None, None
        # What every rank of the group has of the gradient of this rank's slice. Gloo has no scattering sum.
        received = torch.empty_like(gradient, memory_format=torch.contiguous_format)
        dist.all_to_all_single(received, gradient.contiguous(), group=group.group)
        return received.sum(0), None, None


def _attention(
    whole: Any,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    sequence_rows: _Rows | None = None,
    **options: Any,
) -> Any:
    """An attention function of transformers, in the place of `whole`. Forward passes without groups, which
    say nothing of rows, are those of `whole`."""
    if sequence_rows is None:
        return whole(module, query, key, value, attention_mask, **options)
    rows, heads, _, width = query.shape
    exchange = _exchange(whole, rows, heads, key.shape[1], width)
    options["position_ids"] = sequence_rows.positions_BL
    groups = getattr(module, "num_key_value_groups", None)
    try:
        return exchange(module, query, key, value, sequence_rows.attention_B1TT, **options)
    finally:
        # Where there are fewer key heads than ranks, the exchange copies them and says so here.
        if groups is not None:
            module.num_key_value_groups = groups


@cache
def _exchange(whole: Any, rows: int, heads: int, kv_heads: int, width: int) -> nn.Module:
    """DeepSpeed's exchange around an attention function for calls of one shape."""
    # Seconds, and only learners need it.
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

    group = sequence_group()
    assert group is not None
    exchange: nn.Module = UlyssesSPAttentionHF(
        attn=whole,
        batch_size=rows,
        attn_head_count=heads,
        attn_head_size=width,
        kv_head_count=kv_heads,
        num_hidden_layers=0,  # for a debug mode alone
        process_group=group.group,
        seq_length_is_variable=True,
    )
    return exchange


def _separate(positions_BT: Tensor) -> Tensor:
    """bool (B, T, T): a token sees those of its sequence before it; sequences begin where position ids do not
    go on."""
    begins_BT = positions_BT.diff(dim=1, prepend=positions_BT[:, :1] - 2) != 1
    sequence_BT = begins_BT.cumsum(1)
    return (sequence_BT[:, :, None] == sequence_BT[:, None, :]).tril()


def _filled(attention_BTT: Tensor, fill: int) -> Tensor:
    """The mask of rows with `fill` more tokens, each of which sees itself: one that sees none would be
    nan."""
    width = attention_BTT.shape[1]
    filled = nn.functional.pad(attention_BTT, (0, fill, 0, fill))
    added = torch.arange(width, width + fill, device=filled.device)
    filled[:, added, added] = True
    return filled
