"""Parameters that ZeRO-3 shards over the ranks: empty tensors with the shard beside them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

from torch import nn


def is_sharded(parameters: Iterable[nn.Parameter]) -> bool:
    return any(hasattr(parameter, "ds_id") for parameter in parameters)


def whole(parameters: list[nn.Parameter]) -> AbstractContextManager[object]:
    """Inside it, sharded parameters are whole. A collective for those."""
    if not is_sharded(parameters):
        return nullcontext()
    import deepspeed  # seconds, and scoring actors do without it

    gathered: AbstractContextManager[object] = deepspeed.zero.GatheredParameters(parameters)
    return gathered
