"""The tokenizer of a reward model that has one of its own: another vocabulary or chat template than the
policy's.

Where both write conversations as the same tokens, the reward model reads the policy's tokens as they are.
Otherwise texts are rendered and encoded again for it (`actors.reward_models`, `cluster.stages.reward`).
"""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from common.errors import UserError
from learners.config import ModelConfig
from learners.data.conversations import InvalidRow, Messages
from learners.data.tokenizer_loading import load_scoring_tokenizer, load_tokenizer
from learners.data.turn_tokens import encode_response
from learners.model_paths import cached_folder

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
PROBES: tuple[Messages, ...] = (
    [{"role": "user", "content": "What is 2 plus 2?"}],
    [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Good day!"},
        {"role": "user", "content": "Name a city."},
    ],
)
"""Conversations that two tokenizers of one vocabulary must write alike."""


def own_tokenizer(
    path: str | Path | None, policy: PreTrainedTokenizerBase, chat_template: str | None = None
) -> PreTrainedTokenizerBase | None:
    """The tokenizer of the reward model at `path`; None where that writes conversations as the tokens of
    the policy's, or where the folder has none. `chat_template` is a Jinja file in place of its own.

    Raises UserError for a tokenizer of another vocabulary that has no chat template."""
    if path is None or not has_tokenizer(path):
        return None
    tokenizer = load_scoring_tokenizer(path, chat_template)
    is_same_vocabulary = tokenizer.get_vocab() == policy.get_vocab()
    if tokenizer.chat_template is None:
        if is_same_vocabulary:
            return None
        raise UserError(
            f"reward model {path}: its tokenizer has another vocabulary than the policy's and no chat "
            "template; set chat_template beside its path to a Jinja file"
        )
    if is_same_vocabulary and _write_alike(tokenizer, policy):
        return None
    return tokenizer


def has_tokenizer(path: str | Path) -> bool:
    """Whether a model comes with a tokenizer; that of a hub name is not looked into before it is loaded."""
    folder = cached_folder(path)
    return folder is None or any((folder / name).exists() for name in TOKENIZER_FILES)


def _write_alike(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    for messages in PROBES:
        try:
            if _encoded(one, messages) != _encoded(other, messages):
                return False
        except InvalidRow:  # a template that refuses what the other takes
            return False
    return True


def _encoded(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    return encode_response(tokenizer, messages, "Four, I think.", ended=True)


def reward_tokenizer(
    path: str | Path | None, policy: str | Path, model: ModelConfig, chat_template: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer to train a reward model with: its own, or the policy's."""
    of_policy = load_tokenizer(policy, model)
    return own_tokenizer(path, of_policy, chat_template) or of_policy
