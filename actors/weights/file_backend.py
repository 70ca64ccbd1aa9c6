"""The receiving half of the file transport: a vLLM weight-transfer backend, loaded inside vLLM's workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from actors.weights.transport import iter_safetensors


@dataclass
class FileInitInfo(WeightTransferInitInfo):
    """Nothing to agree on: the path comes with each update."""


@dataclass
class FileUpdateInfo(WeightTransferUpdateInfo):
    path: str
    """A safetensors file, or a folder of them, with every parameter under its Hugging Face name."""


class FileWeightTransferEngine(WeightTransferEngine[FileInitInfo, FileUpdateInfo]):
    """Reloads a running model layer by layer from a file."""

    init_info_cls = FileInitInfo
    update_info_cls = FileUpdateInfo

    def init_transfer_engine(self, init_info: FileInitInfo) -> None:
        pass

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: FileUpdateInfo) -> None:
        self.model.load_weights(iter_safetensors(update_info.path))

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            _repack_tied_head(self.model)

    def shutdown(self) -> None:
        pass


def _repack_tied_head(model: Any) -> None:
    """On CPU vLLM multiplies by a packed copy of each matrix. A head tied to the embedding is not a layer of its own
    to the reload, so its copy stays that of the old weights: no error, only wrong log-probabilities. Pack it again."""
    head = getattr(model, "lm_head", None)
    if head is not None and hasattr(head, "quant_method"):
        head.quant_method.process_weights_after_loading(head)
