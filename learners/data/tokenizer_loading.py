"""Loads the tokenizer of a model as every stage takes it: with the template, end and pad token of the
config, and with an end token that its template writes."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from common.errors import UserError
from learners.config import ModelConfig
from learners.data.chat_template import tell_once, turn_form
from learners.data.tokenizer import end_token
from learners.model_paths import resolve_model_path

SPARE_NAME = re.compile(r"pad|reserved|unused|unk", re.IGNORECASE)


def load_tokenizer(path: str | Path, config: ModelConfig | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name, with the template and tokens that the config sets
    instead of its own.

    Its end token is the one that the template writes after an assistant's turn, whatever the tokenizer
    calls it: a model learns to write that one and no other. Raises UserError where a template, the end
    token or the pad token is missing, where pad and end are the same, where a token of the config is not
    in the vocabulary, or where the template does not write the end token of the config."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model_path(path))
    if config is None:
        config = ModelConfig()
    if config.chat_template:
        tokenizer.chat_template = _read_template(Path(config.chat_template).expanduser())
    _check_template(tokenizer, path)
    if config.end_token is not None:
        tokenizer.eos_token = _known_token(tokenizer, path, "end_token", config.end_token)
    if config.pad_token is not None:
        tokenizer.pad_token = _known_token(tokenizer, path, "pad_token", config.pad_token)
    _match_end_token(tokenizer, path, config.end_token)
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"tokenizer of {path}: it has no pad token; set model.pad_token to one that is not the end "
            f"token{_spare_tokens(tokenizer)}"
        )
    end_token(tokenizer)
    return tokenizer


def load_scoring_tokenizer(path: str | Path, chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model that only reads: its end token is the one that its template writes, and any
    other token can be the pad token. The template may be missing."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model_path(path))
    if chat_template:
        tokenizer.chat_template = _read_template(Path(chat_template).expanduser(), "chat_template")
    if tokenizer.chat_template:
        _check_template(tokenizer, path)
        _match_end_token(tokenizer, path, None)
    if tokenizer.eos_token_id is None:
        raise UserError(f"tokenizer of {path}: it has no end token, and its template writes none")
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        # Padding is on the right and never read, but transformers finds the last token by it.
        others = [token for token in tokenizer.all_special_tokens if token != tokenizer.eos_token]
        tokenizer.pad_token = (others or [tokenizer.convert_ids_to_tokens(0)])[0]
    return tokenizer


def _read_template(path: Path, key: str = "model.chat_template") -> str:
    if not path.is_file():
        raise UserError(f"{key}={path}: no such file; it should hold a Jinja template")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{key}={path}: not text in UTF-8 (byte {error.start})") from None


def _check_template(tokenizer: PreTrainedTokenizerBase, path: str | Path) -> None:
    template = tokenizer.chat_template
    if not template:
        raise UserError(
            f"tokenizer of {path}: it has no chat template; set model.chat_template to a Jinja file"
        )
    if isinstance(template, dict) and "default" not in template:
        raise UserError(
            f"tokenizer of {path}: it has chat templates named {', '.join(sorted(template))} and none named "
            "default; set model.chat_template to a Jinja file"
        )


def _known_token(tokenizer: PreTrainedTokenizerBase, path: str | Path, key: str, token: str) -> str:
    if token in tokenizer.get_vocab():
        return token
    # Among the tokens of their own only: the whole vocabulary would take seconds.
    names = {str(added) for added in tokenizer.added_tokens_decoder.values()}
    near = difflib.get_close_matches(token, sorted(names | set(tokenizer.all_special_tokens)), cutoff=0.4)
    similar = f"; similar ones: {', '.join(near)}" if near else ""
    raise UserError(f"model.{key}={token}: the tokenizer of {path} has no such token{similar}")


def _match_end_token(tokenizer: PreTrainedTokenizerBase, path: str | Path, configured: str | None) -> None:
    """Takes the token that the template writes after a turn as end token, if the config names none."""
    form = turn_form(tokenizer)
    if configured is not None:
        if form.token is not None and not form.closing:
            raise UserError(
                f"model.end_token={configured}: the chat template of {path} ends a turn with {form.token} "
                f"and does not write {configured}, so that no response would ever end; leave "
                "model.end_token out, or set model.chat_template"
            )
    elif form.token is not None and form.token != tokenizer.eos_token:
        instead = f" instead of the tokenizer's {tokenizer.eos_token}" if tokenizer.eos_token else ""
        tell_once(
            f"tokenizer of {path}: the template ends a turn with {form.token}, which is used as end "
            f"token{instead}"
        )
        tokenizer.eos_token = form.token
    if form.token is None and tokenizer.eos_token is not None:
        tell_once(
            f"tokenizer of {path}: the template writes no special token after a turn; "
            f"{tokenizer.eos_token} is learned as the end of the last answer of each conversation"
        )


def _spare_tokens(tokenizer: PreTrainedTokenizerBase) -> str:
    """Tokens that could be the pad token, as a part of a sentence."""
    names = {str(added) for added in tokenizer.added_tokens_decoder.values()} - {tokenizer.eos_token}
    spare = sorted(name for name in names if SPARE_NAME.search(name))
    return f", for example {spare[0]}" if spare else ""
