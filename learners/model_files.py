"""Writes a model as a Hugging Face folder from a stream of its weights, one shard in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import WeightConverter, revert_weight_conversion

SHARD_BYTES = 4_000_000_000
"""Size of a file of weights. A model up to this size is one file."""


def write_model(
    model: PreTrainedModel,
    weights: Iterable[tuple[str, Tensor]],
    folder: Path,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes config, generation config and `weights`, by their names in `model`, as `save_pretrained`
    does. Each tensor is copied before the next one is asked for; the copies of one shard are held, or
    of all where transformers makes the tensors of a file from several of the model (as of experts)."""
    if _has_other_tensors(model):
        copies = {name: weight.detach().to("cpu", copy=True) for name, weight in weights}
        model.save_pretrained(folder, state_dict=copies, max_shard_size=shard_bytes)
        return
    model.save_pretrained(folder, state_dict={})
    shards = _Shards(folder, shard_bytes)
    for name, weight in weights:
        shards.add(*_as_stored(model, name, weight))
    shards.finish()


class _Shards:
    """Files of at most so many bytes each, but for a tensor that is larger by itself."""

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self.folder, self.shard_bytes = folder, shard_bytes
        self.held: dict[str, Tensor] = {}
        self.held_bytes = self.total_bytes = self.total_parameters = 0
        self.written: list[list[str]] = []
        """Names in each file so far."""

    def add(self, name: str, weight: Tensor) -> None:
        if self.held and self.held_bytes + weight.nbytes > self.shard_bytes:
            self._write()
        # Memory of its own: what is gathered is gone after this call.
        self.held[name] = weight.detach().to("cpu", copy=True).contiguous()
        self.held_bytes += weight.nbytes
        self.total_bytes += weight.nbytes
        self.total_parameters += weight.numel()

    def finish(self) -> None:
        """Gives the files their names, which say how many there are, and writes the index."""
        self._write()
        count = len(self.written)
        if count == 1:
            self._path(1).rename(self.folder / "model.safetensors")
            return
        weight_map = {}
        for number, names in enumerate(self.written, 1):
            file = f"model-{number:05d}-of-{count:05d}.safetensors"
            self._path(number).rename(self.folder / file)
            weight_map.update(dict.fromkeys(names, file))
        sizes = {"total_parameters": self.total_parameters, "total_size": self.total_bytes}
        index = {"metadata": sizes, "weight_map": weight_map}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (self.folder / "model.safetensors.index.json").write_text(text)

    def _write(self) -> None:
        self.written.append(list(self.held))
        save_file(self.held, self._path(len(self.written)), metadata={"format": "pt"})
        self.held, self.held_bytes = {}, 0

    def _path(self, number: int) -> Path:
        return self.folder / f"shard-{number}.safetensors"


def _has_other_tensors(model: PreTrainedModel) -> bool:
    """Whether files of this architecture have other tensors than the model, not only other names."""
    conversions = _conversions(model)
    return any(isinstance(conversion, WeightConverter) for conversion in conversions)


def _conversions(model: PreTrainedModel) -> list[object]:
    known = getattr(model, "_weight_conversions", None)
    if known is None:
        from transformers.conversion_mapping import get_model_conversion_mapping

        known = get_model_conversion_mapping(model, add_legacy=False)
    return known or []


def _as_stored(model: PreTrainedModel, name: str, weight: Tensor) -> tuple[str, Tensor]:
    """The name and tensor of a file."""
    if not _conversions(model):
        return name, weight
    [(stored_name, stored)] = revert_weight_conversion(model, {name: weight}).items()
    return stored_name, stored
