"""The model's weights in buckets: groups of whole tensors that together have about a given size.

A weight sync (`actors.weights`) moves one bucket after the other, so that neither a learner rank nor
an engine ever holds a second copy of the whole model. Under ZeRO-3 the tensors of one bucket are
gathered together and freed before the next bucket is gathered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from learners.lora import Gather
from learners.named_tensors import LORA_A, LORA_B, LORA_SCALE, NamedTensors


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
    layers = _adapted_layers(model)
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


def adapter_bucket(model: nn.Module, gathered: Gather) -> Iterator[tuple[NamedTensors, bool]]:
    """One bucket with the adapters of every adapted weight: two matrices and their scale. A collective,
    like `weight_buckets`. Raises RuntimeError if other weights are trained as well, or there are no
    adapters."""
    layers = _adapted_layers(model)
    matrices = [parameter for name, parameter in model.named_parameters() if ".lora_" in name]
    others = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    if not layers or others - {id(matrix) for matrix in matrices}:
        raise RuntimeError("sync.adapters_only needs a policy of which adapters alone are trained")
    with gathered(matrices):
        bucket: NamedTensors = []
        for name, layer in layers.items():
            plain_name = name.replace(".base_layer.", ".")
            matrix_A = layer.lora_A["default"].weight.data
            scale = torch.tensor(layer.scaling["default"], dtype=torch.float64, device=matrix_A.device)
            bucket.append((plain_name + LORA_A, matrix_A))
            bucket.append((plain_name + LORA_B, layer.lora_B["default"].weight.data))
            bucket.append((plain_name + LORA_SCALE, scale))
        yield bucket, True


def _adapted_layers(model: nn.Module) -> dict[str, Any]:
    """The layers with adapters, by the name of the weight that they are added to."""
    layers: dict[str, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            layers[f"{name}.base_layer.weight"] = module
    return layers


def _merged(name: str, weight: nn.Parameter, layer: Any) -> tuple[str, Tensor]:
    if layer is None:
        return name, weight.data
    delta = layer.get_delta_weight("default").detach()
    return name.replace(".base_layer.", "."), weight.data + delta


def _full_bytes(weight: nn.Parameter) -> int:
    """Size of the whole tensor, also of one that ZeRO-3 has sharded (DeepSpeed keeps its size)."""
    return int(getattr(weight, "ds_numel", weight.numel())) * weight.element_size()
