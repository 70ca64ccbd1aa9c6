"""Loads the tokenizer of a model as the config has it: with its template, end and pad token."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from common.errors import UserError
from learners.config import ModelConfig
from learners.model_paths import resolve_model_path


def load_tokenizer(path: str | Path, config: ModelConfig | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name, with the template and tokens that the config sets
    instead of its own.

    Raises UserError where a template or the pad token is missing, or a token of the config is not
    in the vocabulary.
    """
    tokenizer = AutoTokenizer.from_pretrained(resolve_model_path(path))
    if config is not None:
        _apply_config(tokenizer, path, config)
    if tokenizer.chat_template is None:
        raise UserError(
            f"tokenizer of {path}: it has no chat template; set model.chat_template to a Jinja file"
        )
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"tokenizer of {path}: it has no pad token; set model.pad_token to one that is not the end token"
        )
    return tokenizer


def _apply_config(tokenizer: PreTrainedTokenizerBase, path: str | Path, config: ModelConfig) -> None:
    if config.chat_template:
        template = Path(config.chat_template)
        if not template.is_file():
            raise UserError(f"model.chat_template={template}: no such file; it should hold a Jinja template")
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    vocabulary = tokenizer.get_vocab()
    tokens = {
        "end_token": ("eos_token", config.end_token),
        "pad_token": ("pad_token", config.pad_token),
    }
    for key, (attribute, token) in tokens.items():
        if token is None:
            continue
        if token not in vocabulary:
            raise UserError(f"model.{key}={token}: the tokenizer of {path} has no such token")
        setattr(tokenizer, attribute, token)
