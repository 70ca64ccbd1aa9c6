"""The receiving half of every transport: a weight-transfer backend, loaded in vLLM's workers.

vLLM finds it by the name that `actors.weights.vllm.register` gives it, and calls it between two
steps of the engine: start, receive for each bucket, finish. All buckets go into one layerwise reload,
so an engine never holds a second copy of the model. vLLM is imported at the top, since nothing but vLLM
imports this module.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader import reload

from actors.weights import ipc, links
from actors.weights.adapters import merged_with_base
from actors.weights.files import iter_weights
from actors.weights.payload import TensorMeta


@dataclass
class InitInfo(WeightTransferInitInfo):
    """Where learner rank 0 waits for the workers of this engine; without a host there is no link, which
    only the broadcast transport needs."""

    host: str | None = None
    port: int = 0
    timeout_s: float = 300.0


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """One bucket, or with the kind broadcast all of them; `actors.weights.payload.WeightPayload`
    describes the fields."""

    kind: str
    path: str | None = None
    """A safetensors file, or a Hugging Face folder, with Hugging Face names."""
    digest: str = ""
    tensors: list[Any] = field(default_factory=list)
    arrays: dict[str, np.ndarray] | None = None
    """Bytes of each tensor, for the kind object_store."""
    handles: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    base: str | None = None


class BucketEngine(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Reloads a running model layer by layer from buckets of any kind."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo

    _link: links.Link | None = None

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        self.shutdown()
        if init_info.host is None:
            return
        # Rank 0 of a link is the learner's.
        rank, size = 1 + self.parallel_config.rank, 1 + self.parallel_config.world_size
        host, port, timeout_s = init_info.host, init_info.port, init_info.timeout_s
        self._link = links.connect(host, port, rank, size, timeout_s, self.device)

    def start_weight_update(self) -> None:
        # A plain load_weights on a running engine fails on CPU, where matrices are packed.
        reload.initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: UpdateInfo) -> None:
        if update_info.base is not None:
            adapters: dict[str, torch.Tensor] = {}
            for bucket in self._buckets(update_info):
                adapters.update(bucket)
            self.model.load_weights(merged_with_base(iter_weights(update_info.base), adapters))
            return
        for bucket in self._buckets(update_info):
            self.model.load_weights(bucket)

    def _buckets(self, info: UpdateInfo) -> Iterable[Iterable[tuple[str, torch.Tensor]]]:
        if info.kind != "broadcast":
            return [self._bucket(info)]
        if self._link is None:
            raise RuntimeError("this engine has no link to the learners")
        return links.receive(self._link, self.device)

    def _bucket(self, info: UpdateInfo) -> Iterable[tuple[str, torch.Tensor]]:
        """The tensors of one bucket, verified where the engine's process has not done it."""
        tensors = [TensorMeta(*meta) for meta in info.tensors]
        if info.arrays is not None:
            return [_from_bytes(meta, info.arrays[meta.name]) for meta in tensors]
        if info.handles:
            return ipc.map_tensors(info.handles, info.digest, tensors, self.device)
        assert info.path is not None
        return iter_weights(info.path)

    def finish_weight_update(self) -> None:
        reload.finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            _repack_tied_head(self.model)

    def shutdown(self) -> None:
        if self._link is not None:
            self._link.close()
        self._link = None


def _from_bytes(meta: TensorMeta, array: np.ndarray) -> tuple[str, torch.Tensor]:
    with warnings.catch_warnings():
        # Ray's arrays may only be read, of which torch warns; nothing writes to a weight that is loaded.
        warnings.simplefilter("ignore", UserWarning)
        tensor = torch.from_numpy(array)
    return meta.name, tensor.view(getattr(torch, meta.dtype)).view(meta.shape)


def _repack_tied_head(model: Any) -> None:
    """Packs a head that is tied to the embedding again.

    On CPU vLLM multiplies by a packed copy of each matrix. A tied head is not a layer of its own to
    the reload, so its copy stays that of the old weights: no error, only wrong log-probabilities.
    """
    head = getattr(model, "lm_head", None)
    if head is not None and hasattr(head, "quant_method"):
        head.quant_method.process_weights_after_loading(head)
