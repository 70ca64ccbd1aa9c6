"""The model's weights in buckets: groups of whole tensors that together have about a given size.

A weight sync (`actors.weights`) moves one bucket after the other, so that neither a learner rank nor
an engine ever holds a second copy of the whole model. Under ZeRO-3 the tensors of one bucket are
gathered together and freed before the next bucket is gathered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from learners.lora import Gather

NamedTensors = list[tuple[str, Tensor]]
"""(Hugging Face name, tensor) of each weight of a bucket."""


def cut(sizes: Sequence[int], max_bytes: int) -> list[range]:
    """Cuts tensors of these sizes (bytes), kept in their order, into buckets of at most `max_bytes`. A
    tensor that is larger alone is a bucket of its own, since an engine loads whole tensors."""
    buckets, start, total = [], 0, 0
    for index, size in enumerate(sizes):
        if index > start and total + size > max_bytes:
            buckets.append(range(start, index))
            start, total = index, 0
        total += size
    if sizes:
        buckets.append(range(start, len(sizes)))
    return buckets


def weight_buckets(model: nn.Module, gathered: Gather, max_bytes: int) -> Iterator[tuple[NamedTensors, bool]]:
    """(bucket, whether it is the last) for every weight of the plain model, adapters merged.

    A bucket is valid until the next one is asked for. Inside `gathered`, parameters that are sharded
    over ranks are whole: a collective, so every rank must iterate over all buckets.
    """
    layers: dict[str, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            layers[f"{name}.base_layer.weight"] = module
    # Adapters are merged into the weights beside them and have no place of their own.
    weights = [(name, weight) for name, weight in model.named_parameters() if ".lora_" not in name]
    ranges = cut([_full_bytes(weight) for _, weight in weights], max_bytes)
    for number, indexes in enumerate(ranges):
        bucket = [weights[index] for index in indexes]
        needed = []
        for name, weight in bucket:
            needed.append(weight)
            if name in layers:
                needed += [p for p in layers[name].parameters() if p is not weight]
        with gathered(needed):
            yield (
                [_merged(name, weight, layers.get(name)) for name, weight in bucket],
                number + 1 == len(ranges),
            )


def _merged(name: str, weight: nn.Parameter, layer: Any) -> tuple[str, Tensor]:
    if layer is None:
        return name, weight.data
    delta = layer.get_delta_weight("default").detach()
    return name.replace(".base_layer.", "."), weight.data + delta


def _full_bytes(weight: nn.Parameter) -> int:
    """Size of the whole tensor, also of one that ZeRO-3 has sharded (DeepSpeed keeps its size)."""
    return int(getattr(weight, "ds_numel", weight.numel())) * weight.element_size()
