"""An update by adapters alone (LoRA): engines get the small matrices and add their product to the weights
of the base model, which they read from its folder.

The base model does not change while adapters are trained, so only a share of a percent of the bytes
travels. The folder is read anew for each update, from the memory in which the operating system keeps
files: no engine holds a second copy of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch

from learners.named_tensors import LORA_A, LORA_B, LORA_SCALE


def merged_with_base(
    base: Iterable[tuple[str, torch.Tensor]], adapters: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of every weight of the base model, with the product of its adapters added. Raises
    RuntimeError if there are adapters of weights that the base model does not have."""
    weights = {name.removesuffix(LORA_A) for name in adapters if name.endswith(LORA_A)}
    for name, tensor in base:
        if name in weights:
            weights.remove(name)
            matrix_A, matrix_B = adapters[name + LORA_A], adapters[name + LORA_B]
            tensor = tensor.to(matrix_A) + _product(matrix_B, matrix_A, adapters[name + LORA_SCALE])
        yield name, tensor
    if weights:
        raise RuntimeError(f"the base model has no weight {min(weights)}, which adapters are for")


def _product(matrix_B: torch.Tensor, matrix_A: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """As peft computes it, which the learners use (`peft.tuners.lora.Linear.get_delta_weight`): on CPU in
    float32, so that both sides round alike."""
    dtype = matrix_A.dtype
    if matrix_A.device.type == "cpu" and dtype in (torch.float16, torch.bfloat16):
        return (matrix_B.float() @ matrix_A.float() * float(scale)).to(dtype)
    return matrix_B @ matrix_A * float(scale)
