"""Low-rank adapters inside a plain transformers model, and the plain weights that model and adapters amount to.

The layers are injected in place (peft), so forwards, heads and names stay those of the model. Learner state holds
the adapters; engines and exported folders get merged weights and know nothing of them.
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
    """Injects adapters, which start as no change, and freezes all but them and `head`, a scalar model's own layer."""
    targets: list[str] | str = config.targets
    if targets == "all-linear":
        skipped = {id(head), id(model.get_output_embeddings())}
        linear = (
            name for name, m in model.named_modules() if isinstance(m, nn.Linear) and id(m) not in skipped
        )
        targets = sorted({name.rpartition(".")[2] for name in linear})
    try:
        inject_adapter_in_model(
            LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=targets), model
        )
    except ValueError as fault:
        raise UserError(f"model.lora.targets={config.targets}: {str(fault).splitlines()[0]}") from None
    if head is not None:
        head.requires_grad_(True)


def merged_weights(model: PreTrainedModel, gathered: Gather) -> Iterator[tuple[str, Tensor]]:
    """(Hugging Face name, tensor) of every weight of the plain model. `gathered` makes sharded parameters whole; where
    they are, every rank iterates."""
    layers: dict[str, Any] = {
        f"{name}.base_layer.weight": m for name, m in model.named_modules() if isinstance(m, LoraLayer)
    }
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            continue
        layer = layers.get(name)
        with gathered([parameter, *(layer.parameters() if layer else [])]):
            weight = parameter.data + layer.get_delta_weight("default").detach() if layer else parameter.data
            yield name.replace(".base_layer.", "."), weight
