"""A byte-level BPE tokenizer as the keys of a GGUF file, with llama.cpp's name for how it cuts texts."""

from __future__ import annotations

import json
from typing import Any

import gguf
from transformers import PreTrainedTokenizerBase
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from common.errors import UserError

OTHERWISE = "convert the folder with llama.cpp's convert_hf_to_gguf.py"


def add_vocabulary(
    writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, rows: int, where: str
) -> None:
    """Adds tokens, merges, special tokens and chat template; `rows` is the size of the embedding. Raises
    UserError for a tokenizer that is no byte-level BPE, or cuts texts in a way without a name."""
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    model = core["model"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        raise UserError(
            f"{where}: its tokenizer is {model['type']}, and only byte-level BPE can be written; {OTHERWISE}"
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_form_name(core["pre_tokenizer"], where))
    tokens, types = _tokens(tokenizer, rows)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    # Two forms of tokenizer.json: "a b", or ["a", "b"].
    writer.add_token_merges(
        [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    )
    for add, token in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if token is not None:
            add(token)
    # The template writes all special tokens itself.
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    if tokenizer.chat_template:
        writer.add_chat_template(_plain(str(tokenizer.get_chat_template())))


def _tokens(tokenizer: PreTrainedTokenizerBase, rows: int) -> tuple[list[str], list[int]]:
    """Text and type of every row of the embedding."""
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    added = {number: token.special for number, token in tokenizer.added_tokens_decoder.items()}
    tokens, types = [], []
    for number in range(max(rows, max(by_id) + 1)):
        kind = gguf.TokenType.NORMAL
        if number not in by_id:
            kind = gguf.TokenType.UNUSED
        elif number in added:
            kind = gguf.TokenType.CONTROL if added[number] else gguf.TokenType.USER_DEFINED
        tokens.append(by_id.get(number, f"[PAD{number}]"))
        types.append(int(kind))
    return tokens, types


def _form_name(pre_tokenizer: dict[str, Any] | None, where: str) -> str:
    """The name in llama.cpp (src/llama-vocab.cpp) for how texts are cut before merging."""
    steps = [pre_tokenizer or {}]
    if steps[0].get("type") == "Sequence":
        steps = steps[0]["pretokenizers"]
    kinds = [step.get("type") for step in steps]
    if steps[-1].get("type") == "ByteLevel" and not steps[-1].get("add_prefix_space"):
        by_regex = steps[-1].get("use_regex", True)
        if kinds == ["ByteLevel"] and by_regex:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and by_regex:
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and not by_regex:
            for name, regex in GGUF_PRE_TOKENIZER_SPLITS.items():
                if steps[0]["pattern"].get("Regex") == regex:
                    return str(name)
    raise UserError(
        f"{where}: llama.cpp has no name for how its tokenizer cuts texts ({', '.join(map(str, kinds))}); "
        f"{OTHERWISE}"
    )


def _plain(template: str) -> str:
    """Without the marks of what is learned, which are transformers' own and no other program reads."""
    for mark in ("generation", "endgeneration"):
        for opening, closing in (("{%", "%}"), ("{%-", "%}"), ("{%", "-%}"), ("{%-", "-%}")):
            template = template.replace(f"{opening} {mark} {closing}", "")
    return template
