"""What a bucket of weights is, for whoever sends or loads one; imports neither torch nor peft."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

NamedTensors = list[tuple[str, "Tensor"]]
"""(Hugging Face name, tensor) of each weight of a bucket."""

LORA_A, LORA_B, LORA_SCALE = ":lora_A", ":lora_B", ":lora_scale"
"""Ends of the names of adapters' tensors, after the name of the weight that they belong to."""
