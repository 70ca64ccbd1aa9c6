"""The receiving half of the file transport: a weight-transfer backend, loaded in vLLM's workers.

vLLM finds it by the name that `actors.weights.vllm.register` gives it, and calls it between two
steps of the engine: start, receive, finish. vLLM is imported at the top, since nothing but vLLM
imports this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader import reload

from actors.weights.files import iter_weights


@dataclass
class FileInitInfo(WeightTransferInitInfo):
    """Nothing to agree on: the path comes with each update."""


@dataclass
class FileUpdateInfo(WeightTransferUpdateInfo):
    path: str
    """A safetensors file, or a Hugging Face folder, with every parameter under its Hugging Face name."""


class FileWeightTransferEngine(WeightTransferEngine[FileInitInfo, FileUpdateInfo]):
    """Reloads a running model layer by layer from a file."""

    init_info_cls = FileInitInfo
    update_info_cls = FileUpdateInfo

    def init_transfer_engine(self, init_info: FileInitInfo) -> None:
        pass

    def start_weight_update(self) -> None:
        # A plain load_weights on a running engine fails on CPU, where matrices are packed.
        reload.initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: FileUpdateInfo) -> None:
        self.model.load_weights(iter_weights(update_info.path))

    def finish_weight_update(self) -> None:
        reload.finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            _repack_tied_head(self.model)

    def shutdown(self) -> None:
        pass


def _repack_tied_head(model: Any) -> None:
    """Packs a head that is tied to the embedding again.

    On CPU vLLM multiplies by a packed copy of each matrix. A tied head is not a layer of its own to
    the reload, so its copy stays that of the old weights: no error, only wrong log-probabilities.
    """
    head = getattr(model, "lm_head", None)
    if head is not None and hasattr(head, "quant_method"):
        head.quant_method.process_weights_after_loading(head)
