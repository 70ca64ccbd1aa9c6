"""`hero import`: a model of another program becomes a Hugging Face folder that transformers, vLLM and every
stage load."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from cluster.interchange.gguf_files import (
    GgufFile,
    check_complete,
    load_gguf_model,
    load_gguf_tokenizer,
    open_gguf,
)
from cluster.interchange.sources import ModelSource, find_source
from cluster.interchange.tokens import set_end_and_pad
from common.errors import UserError, one_line
from common.files import atomic_path, write_json
from learners.data.tokenizer_loading import load_tokenizer
from learners.export import prepare_export
from learners.model_files import write_model
from learners.models import DTYPES

ORIGIN = "import.json"
"""File of the folder that says what it was made from, without paths of the machine."""


@dataclass(frozen=True)
class ImportedModel:
    """Where a folder comes from, and what was made of it."""

    source: str
    """Name of the file or folder."""
    sha256: str | None
    """Of a GGUF file."""
    name: str | None
    """As the model calls itself."""
    license: str | None
    architecture: str
    parameters: int
    stored_as: str
    """How the source stored the weights."""
    dtype: str
    end_token: str | None
    pad_token: str
    notes: list[str]


def import_model(
    name: str, folder: Path, dtype: str = "float32", template: Path | None = None
) -> ImportedModel:
    """Writes the model that `name` names into `folder`, whole or not at all; the same bytes each time.
    `template` is a Jinja file for a model without a chat template, or in place of its own.

    Raises UserError where `folder` exists, and for a source that cannot be read."""
    if folder.exists() or folder.is_symlink():
        raise UserError(
            f"{folder}: it exists, and an import replaces nothing; remove it or give another folder"
        )
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype}: expected one of {', '.join(DTYPES)}")
    source = find_source(name)
    transformers_logging.disable_progress_bar()
    file: GgufFile | None = None
    notes: list[str] = []
    if source.is_gguf:
        file = open_gguf(source.path)
        tokenizer, note = load_gguf_tokenizer(file)
        if note:
            notes.append(note)
        model = load_gguf_model(file, DTYPES[dtype])
    else:
        model, tokenizer = _load_folder(source.path, DTYPES[dtype])
    if template is not None:
        tokenizer.chat_template = _read_template(template)
    set_end_and_pad(model, tokenizer)
    if not tokenizer.chat_template:
        notes.append(
            "it has no chat template: set model.chat_template, or import it with --chat-template FILE"
        )
    imported = _described(source, file, model, tokenizer, notes)
    with atomic_path(folder) as partial:
        _write(model, tokenizer, partial)
        write_json(partial / ORIGIN, asdict(imported))
        if tokenizer.chat_template:
            load_tokenizer(partial)  # as every stage does, which refuses what cannot be learned with
    return imported


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--chat-template {path}: cannot be read ({one_line(error)})") from None


def _load_folder(path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        model, report = AutoModelForCausalLM.from_pretrained(str(path), dtype=dtype, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(str(path))
    except Exception as error:  # any of transformers' readers, for any of the files
        raise UserError(
            f"{path}: transformers cannot load it as a causal language model ({one_line(error, 200)}); "
            "expected a whole Hugging Face folder with its tokenizer"
        ) from error
    if getattr(model.config, "quantization_config", None) is not None:
        raise UserError(
            f"{path}: its weights are quantised, and such weights cannot be trained; give the model that it "
            "was made from, or its GGUF file"
        )
    check_complete(str(path), report)
    return model, tokenizer


def _write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Through a model without values: transformers refuses to save one that it has read from GGUF."""
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # What it was called where it was read; its own name is in import.json.
    for key in ("_name_or_path", "_model_name_or_path"):
        vars(config).pop(key, None)
    config.architectures = [type(model).__name__]
    with torch.device("meta"):
        plain = type(model)(config)
    if not model.generation_config._from_model_config:
        plain.generation_config = model.generation_config
    elif plain.can_generate():
        plain.generation_config = GenerationConfig(bos_token_id=config.get_text_config().bos_token_id)
    if tokenizer.eos_token_id is not None:
        prepare_export(plain, tokenizer)
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and tokenizer.model_max_length > limit:
        tokenizer.model_max_length = limit
    write_model(plain, _weights(model), folder)
    tokenizer.save_pretrained(folder)


def _weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Every tensor once, tied ones under their first name."""
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def _described(
    source: ModelSource,
    file: GgufFile | None,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    notes: list[str],
) -> ImportedModel:
    return ImportedModel(
        source=source.path.name,
        sha256=_digest(file.path) if file else None,
        name=file.text("general.name") if file else None,
        license=file.text("general.license") if file else None,
        architecture=type(model).__name__,
        parameters=model.num_parameters(),
        stored_as=", ".join(file.tensor_types) if file else "safetensors",
        dtype=str(model.dtype).removeprefix("torch."),
        end_token=tokenizer.eos_token,
        pad_token=str(tokenizer.pad_token),
        notes=notes,
    )


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
