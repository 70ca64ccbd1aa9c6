"""Trains the tokenizer, byte-level BPE or characters, of a model made from random weights, with
its chat template.

Used by the pretrain stage. Pad, end of turn and end of text are three tokens: where pad equals
the end token its loss is masked and the model never learns to stop (Huang et al. 2024,
arXiv:2403.17031)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from common.errors import UserError

PAD, END_OF_TEXT, END_OF_TURN = "<|pad|>", "<|endoftext|>", "<|end|>"
UNKNOWN = "<|unknown|>"
SEPARATORS = (END_OF_TEXT, "<|end_of_text|>", "<eos>", "</s>")
"""Ends of a document in the pretraining of published models."""
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
SPECIAL_TOKENS = [PAD, END_OF_TEXT, *ROLES, END_OF_TURN]

# `generation` marks what the assistant writes, so that `return_assistant_tokens_mask` finds the
# tokens to learn.
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int | Literal["characters"]) -> PreTrainedTokenizerFast:
    """A tokenizer of exactly `vocab_size` entries (fewer if the texts have fewer merges to
    learn), or of one entry for each character of the texts and one for all others."""
    if vocab_size == "characters":
        return _character_tokenizer(texts)
    core = Tokenizer(models.BPE())
    # Single digits, so that numbers are made of parts that mean the same in every number.
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return _with_chat_template(core)


def _character_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    vocabulary: dict[str, int] = {}
    for entry in [*SPECIAL_TOKENS, UNKNOWN, *sorted(characters)]:
        vocabulary[entry] = len(vocabulary)
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    return _with_chat_template(core, unk_token=UNKNOWN)


def _with_chat_template(core: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END_OF_TURN,
        additional_special_tokens=[END_OF_TEXT, *ROLES],
        chat_template=CHAT_TEMPLATE,
        **special,
    )


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the token that ends an assistant's turn; a tokenizer whose pad is the same token is
    refused."""
    if tokenizer.eos_token_id is None:
        raise UserError(f"tokenizer {tokenizer.name_or_path}: it has no end token; set model.end_token")
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise UserError(
            f"tokenizer {tokenizer.name_or_path}: pad and end are the same token "
            f"({tokenizer.eos_token!r}), so a model would never learn to stop; set model.pad_token to another"
        )
    return int(tokenizer.eos_token_id)


def document_separator(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the token between documents of a packed corpus: the one that is made for it where there
    is one, else the end token, which ends a turn."""
    vocabulary = tokenizer.get_vocab()
    for name in SEPARATORS:
        if name in vocabulary:
            return int(vocabulary[name])
    return end_token(tokenizer)
