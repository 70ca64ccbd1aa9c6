"""Opens GGUF files, the form of models in llama.cpp: checks that a file is whole and can be read, then
loads its weights and its tokenizer by transformers' own readers."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.integrations.gguf.reader import GgufHeader, read_gguf_metadata

from common.errors import UserError, one_line

TYPE_NAMES = {0: "F32", 1: "F16", 30: "BF16"}
SINGLE_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
"""Names in llama.cpp for vocabularies that take each digit for itself and the rest as GPT-2 does
(src/llama-vocab.cpp)."""
AS_GPT2 = {"gpt-2", "default", "phi-2", "gigachat", "mellum", "roberta-bpe", "modern-bert"}


@dataclass(frozen=True)
class GgufFile:
    """A file whose header has been read, and whose tensors are all there."""

    path: Path
    metadata: dict[str, Any]
    """Its keys; a list of texts is there by its length alone."""
    tensor_types: list[str]
    """How its tensors are stored, for example F32 and Q4_1."""

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    def text(self, key: str) -> str | None:
        """A value of the header's, as text."""
        value = self.metadata.get(key)
        return None if value is None else str(value)


def open_gguf(path: Path) -> GgufFile:
    """Reads the header. Raises UserError for a file that is no GGUF file, that is not whole, or that
    holds something else than a model."""
    try:
        header = GgufHeader.from_file(str(path))
        metadata, _ = read_gguf_metadata(str(path))
    except (ValueError, KeyError, IndexError, OverflowError, struct.error) as error:
        raise UserError(
            f"{path}: not a GGUF file that can be read ({_reason(error, path)}); expected a model as "
            "llama.cpp writes it, and if it was downloaded, all of it"
        ) from None
    size, needed = path.stat().st_size, header.data_start
    for tensor in header.tensors:
        needed = max(needed, header.data_start + tensor.offset + tensor.nbytes)
    if size < needed:
        raise UserError(f"{path}: it has {size:,} bytes of {needed:,}, so a part is missing; copy it again")
    _check_kind(path, metadata)
    types = {_type_name(kind) for kind in header.ggml_types.values()}
    return GgufFile(path, metadata, sorted(types))


def _check_kind(path: Path, metadata: dict[str, Any]) -> None:
    parts = metadata.get("split.count") or 1
    if parts > 1:
        raise UserError(
            f"{path}: one of {parts} parts of a model; join them first (llama-gguf-split --merge)"
        )
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise UserError(f"{path}: general.type is {kind}; expected a whole language model")
    if "tokenizer.ggml.tokens" not in metadata:
        raise UserError(f"{path}: it has no tokenizer; expected a language model with its vocabulary")


def _type_name(kind: int) -> str:
    from transformers.integrations.gguf.dequant import GGML_NAME

    names: dict[int, str] = {number: str(name) for number, name in GGML_NAME.items()}
    return TYPE_NAMES.get(kind) or names.get(kind, str(kind))


def load_gguf_model(file: GgufFile, dtype: torch.dtype) -> PreTrainedModel:
    """The model with its weights as plain numbers. Raises UserError for an architecture that
    transformers does not read from GGUF, and where weights are missing."""
    place = {"pretrained_model_name_or_path": str(file.path.parent), "gguf_file": file.path.name}
    try:
        config = AutoConfig.from_pretrained(**place)
        # transformers leaves it at the default of the class, which is one published model's.
        width = file.metadata.get(f"{file.architecture}.attention.key_length")
        if width and hasattr(config, "head_dim"):
            config.head_dim = width
        model, report = AutoModelForCausalLM.from_pretrained(
            **place, config=config, dtype=dtype, output_loading_info=True
        )
    except Exception as error:  # each of transformers' readers raises what it likes
        raise UserError(
            f"{file.path}: transformers cannot load architecture {file.architecture} from GGUF "
            f"({_reason(error, file.path)}); give the model's Hugging Face folder instead"
        ) from error
    check_complete(str(file.path), report)
    return model


def check_complete(where: str, report: dict[str, Any]) -> None:
    """Raises UserError if weights of the model are not in its files: transformers would draw them."""
    for problem in ("missing_keys", "mismatched_keys"):
        names = sorted(str(name) for name in report.get(problem) or ())
        if names:
            raise UserError(
                f"{where}: {len(names)} weights of the model are not in it or have another shape "
                f"({names[0]}, …); expected a whole model"
            )


def load_gguf_tokenizer(file: GgufFile) -> tuple[PreTrainedTokenizerBase, str | None]:
    """The tokenizer, and a note where it may cut texts otherwise than llama.cpp does. Raises UserError
    for a kind that transformers does not read."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(file.path.parent), gguf_file=file.path.name)
    except Exception as error:  # as for the model
        raise UserError(
            f"{file.path}: its tokenizer cannot be read ({_reason(error, file.path)}); give the model's "
            "Hugging Face folder instead"
        ) from error
    pre = file.text("tokenizer.ggml.pre")
    if file.text("tokenizer.ggml.model") != "gpt2" or pre in AS_GPT2 or pre in GGUF_PRE_TOKENIZER_SPLITS:
        return tokenizer, None
    if pre in SINGLE_DIGITS:
        # transformers takes them as GPT-2, which differs where white space stands before a digit.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        return tokenizer, None
    return tokenizer, f"its texts are cut as GPT-2's, since transformers does not know the form {pre}"


def _reason(error: Exception, path: Path) -> str:
    return one_line(error, 200).replace(f"{path} ", "").rstrip(".")
