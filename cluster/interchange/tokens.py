"""The end and pad tokens of an imported model. Where pad is the end token, as in many chat models, a model
would never learn to stop (Huang et al. 2024, arXiv:2403.17031)."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.random_streams import Stream, derived_seed
from learners.data.chat_template import turn_form
from learners.data.tokenizer import PAD, SEPARATORS
from learners.data.tokenizer_loading import SPARE_NAME


def set_end_and_pad(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """The end token becomes the one that the chat template writes after a turn, and the pad token
    another one; a model that has none to spare gets a new row in its embedding."""
    if tokenizer.chat_template:
        tokenizer.eos_token = turn_form(tokenizer).token or tokenizer.eos_token
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": _spare_token(tokenizer) or PAD})
    # transformers' own readers may add a token as well, which GPT-2 has and the file does not.
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        # No text has the new rows' tokens; the seed makes them the same in every import.
        torch.manual_seed(derived_seed(0, Stream.IMPORT_ROWS))
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)


def _spare_token(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A special token that no conversation has: one whose name says so, else the end of a document."""
    used = {tokenizer.eos_token, tokenizer.bos_token}
    template = str(tokenizer.chat_template or "")
    free = []
    for token in sorted(str(added) for added in tokenizer.added_tokens_decoder.values() if added.special):
        if token not in used and token not in template:
            free.append(token)
    named = [token for token in free if SPARE_NAME.search(token)]
    separators = [token for token in free if token in SEPARATORS]
    return next(iter([*named, *separators]), None)
