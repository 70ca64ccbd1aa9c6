"""Writes a Hugging Face folder of a Llama-like model as a GGUF file, for llama.cpp, Ollama and their like.

Keys and names of tensors are those of llama.cpp's converter (convert_hf_to_gguf.py), by its package gguf.
One tensor is in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
from transformers import AutoConfig, PreTrainedConfig

from actors.weights.files import iter_weights
from cluster.interchange.gguf_vocabulary import OTHERWISE, add_vocabulary
from common.errors import UserError
from common.files import atomic_path
from learners.data.tokenizer_loading import load_tokenizer

ARCHITECTURES = {
    "LlamaForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "MistralForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "Qwen2ForCausalLM": gguf.MODEL_ARCH.QWEN2,
    "Qwen3ForCausalLM": gguf.MODEL_ARCH.QWEN3,
}
PRECISIONS = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
"""How matrices are stored; vectors are always float32."""


def write_gguf(
    folder: Path, path: Path, precision: str = "f32", name: str = "", license_name: str = ""
) -> None:
    """Writes the model of `folder` to the file `path`, whole or not at all. Raises UserError for an
    architecture, a form of positions or a tokenizer that has no place in such a file."""
    if precision not in PRECISIONS:
        raise UserError(f"--precision {precision}: expected one of {', '.join(PRECISIONS)}")
    config = AutoConfig.from_pretrained(str(folder))
    architecture = _architecture(config, folder)
    kind, file_type = PRECISIONS[precision]
    with atomic_path(path) as partial:
        writer = gguf.GGUFWriter(partial, gguf.MODEL_ARCH_NAMES[architecture])
        writer.add_type("model")
        writer.add_name(name or folder.name)
        if license_name:
            writer.add_license(license_name)
        _add_shape(writer, config)
        add_vocabulary(writer, load_tokenizer(folder), config.vocab_size, str(folder))
        writer.add_file_type(file_type)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for tensor_name, values in _tensors(folder, config, architecture):
            stored = _stored_kind(values, kind)
            shape = gguf.quant_shape_to_byte_shape(values.shape, stored)
            writer.add_tensor_info(
                tensor_name, shape, np.dtype(np.uint8), int(np.prod(shape)), raw_dtype=stored
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, values in _tensors(folder, config, architecture):
            writer.write_tensor_data(gguf.quantize(values, _stored_kind(values, kind)).view(np.uint8))
        writer.close()


def _architecture(config: PreTrainedConfig, folder: Path) -> gguf.MODEL_ARCH:
    name = (config.architectures or ["an unknown class"])[0]
    if name not in ARCHITECTURES:
        raise UserError(
            f"{folder}: {name} is not written as GGUF, only {', '.join(ARCHITECTURES)}; {OTHERWISE}"
        )
    positions = config.rope_parameters or {}
    if positions.get("rope_type", "default") != "default" or getattr(config, "use_sliding_window", False):
        raise UserError(
            f"{folder}: its positions ({positions.get('rope_type')}) or its attention window are not written "
            f"as GGUF; {OTHERWISE}"
        )
    return ARCHITECTURES[name]


def _add_shape(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    width = _head_width(config)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)


def _head_width(config: PreTrainedConfig) -> int:
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(width)


def _tensors(
    folder: Path, config: PreTrainedConfig, architecture: gguf.MODEL_ARCH
) -> Iterator[tuple[str, np.ndarray]]:
    """(name, float32 values) of every tensor as llama.cpp has it."""
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, tensor in iter_weights(folder):
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stored_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if stored_name is None:
            raise UserError(f"{folder}: tensor {name} has no place in a GGUF file of {architecture.name}")
        values = tensor.float().numpy()
        if architecture == gguf.MODEL_ARCH.LLAMA and (".q_proj." in name or ".k_proj." in name):
            heads = config.num_attention_heads
            if ".k_proj." in name:
                heads = config.num_key_value_heads
            values = _interleaved(values, heads)
        yield stored_name, values


def _interleaved(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head in pairs of its two halves, as llama.cpp rotates them; transformers has one half
    behind the other."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))


def _stored_kind(values: np.ndarray, kind: gguf.GGMLQuantizationType) -> gguf.GGMLQuantizationType:
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    if values.ndim < 2 or values.shape[-1] % block:
        return gguf.GGMLQuantizationType.F32
    return kind
