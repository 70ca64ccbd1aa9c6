"""The head of a causal language model, as its own class computes it.

In many architectures logits are more than a matrix product: Granite and Cohere scale them, Gemma caps
them, MiniCPM3 scales the hidden states. None of this can be told from the config in general, so the
class's own forward computes it: its backbone stands aside for the call and gives hidden states that
are known already. So the head can run on a few positions alone, and on a chunk of them at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast


class _BackboneOutput(BaseModelOutputWithPast):
    """What a backbone returns; what else a class looks for in it (caches, router logits) is None."""

    def __getattr__(self, name: str) -> None:
        # Not for names like __deepcopy__, by which Python asks what an object can do.
        if name.startswith("__"):
            raise AttributeError(name)


class _KnownStates(nn.Module):
    """Stands for a backbone, and gives hidden states that were computed before."""

    def __init__(self, backbone: nn.Module, hidden_1ND: Tensor) -> None:
        super().__init__()
        # Past nn.Module, which would register the backbone as a part of this one.
        object.__setattr__(self, "backbone", backbone)
        object.__setattr__(self, "hidden_1ND", hidden_1ND)

    def forward(self, *_: Any, **__: Any) -> _BackboneOutput:
        return _BackboneOutput(last_hidden_state=self.hidden_1ND)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.backbone, name)
        # OPT calls the decoder inside its backbone.
        return self if isinstance(value, PreTrainedModel) else value


def own_logits(model: PreTrainedModel, hidden_ND: Tensor) -> Tensor:
    """(N, V) logits of the last layer's hidden states. The same collectives under ZeRO-3 as a call of
    the head, since the model's other modules do not run."""
    name = model.base_model_prefix
    backbone = model._modules[name]
    hidden_1ND = hidden_ND[None]
    # Nothing reads these tokens but checks of their shape.
    tokens_1N = torch.zeros(hidden_1ND.shape[:2], dtype=torch.long, device=hidden_ND.device)
    model._modules[name] = _KnownStates(backbone, hidden_1ND)
    try:
        # `forward` itself: hooks on the model, such as those of ZeRO-3, are for a whole pass.
        logits_1NV: Tensor = model.forward(input_ids=tokens_1N, use_cache=False).logits
    finally:
        model._modules[name] = backbone
    return logits_1NV[0]
