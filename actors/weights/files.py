"""The safetensors files that hold a model's weights, and no others beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open

from common.errors import UserError

if TYPE_CHECKING:  # `hero plan` reads the names of the files without torch
    import torch

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def weight_files(folder: Path) -> list[Path]:
    """The files of a Hugging Face folder that hold its weights, by the rule of transformers: the single
    file, or else those that the index names. Raises UserError if one is missing.

    Not every safetensors file: folders also hold the same weights in another layout (Mistral's
    consolidated.safetensors), value heads or adapters.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        raise UserError(
            f"{folder}: no weights in safetensors files ({SINGLE}, or shards with {INDEX}); save the model "
            "again with transformers"
        )
    names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    for name in names:
        if not (folder / name).is_file():
            raise UserError(
                f"{folder}: {INDEX} names {name}, which is missing; copy or download it completely"
            )
    return [folder / name for name in names]


def iter_weights(path: str | Path) -> Iterable[tuple[str, torch.Tensor]]:
    """(name, tensor) of a safetensors file, or of all weights of a Hugging Face folder."""
    path = Path(path)
    files = [path]
    if path.is_dir():
        files = weight_files(path)
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                yield name, tensors.get_tensor(name)
