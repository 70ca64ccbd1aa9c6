"""Low-rank adapters inside a plain transformers model, and the merged weights of model and
adapters.

The layers are injected in place (peft), so forwards, heads and names stay those of the model. The
learner state holds the adapters; rollout engines and exported folders get merged weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from common.errors import UserError
from learners.config import LoRAConfig

Gather = Callable[[list[nn.Parameter]], AbstractContextManager[object]]


def add_adapters(model: PreTrainedModel, config: LoRAConfig, head: nn.Module | None) -> None:
    """Injects adapters, whose product is zero at first, and freezes everything but them and
    `head`, the head of a scalar model. Raises UserError if a target names no layer."""
    targets: list[str] | str = config.targets
    if targets == "all-linear":
        targets = _linear_layers(model, skipped=(head, model.get_output_embeddings()))
    layers: list[int] | None = None
    if config.last_layers is not None:
        count = model.config.get_text_config().num_hidden_layers
        layers = list(range(max(0, count - config.last_layers), count))
    lora = LoraConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=targets, layers_to_transform=layers
    )
    try:
        inject_adapter_in_model(lora, model)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"model.lora.targets={config.targets}: {reason}") from None
    if head is not None:
        head.requires_grad_(True)


def _linear_layers(model: PreTrainedModel, skipped: tuple[nn.Module | None, ...]) -> list[str]:
    """The last parts of the names of all linear layers, such as q_proj."""
    names = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not any(module is other for other in skipped):
            names.add(name.rpartition(".")[2])
    return sorted(names)


def merged_weights(model: PreTrainedModel, gathered: Gather) -> Iterator[tuple[str, Tensor]]:
    """(Hugging Face name, tensor) of every weight of the plain model. Inside `gathered`,
    parameters that are sharded over ranks are whole; every rank must iterate over all of them."""
    layers: dict[str, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            layers[f"{name}.base_layer.weight"] = module
    for name, parameter in model.named_parameters():
        # Adapters are merged into the weights beside them and have no place of their own.
        if ".lora_" in name:
            continue
        plain_name = name.replace(".base_layer.", ".")
        layer = layers.get(name)
        if layer is None:
            with gathered([parameter]):
                yield plain_name, parameter.data
        else:
            with gathered([parameter, *layer.parameters()]):
                delta = layer.get_delta_weight("default").detach()
                yield plain_name, parameter.data + delta
