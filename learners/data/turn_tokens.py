"""Conversations as tokens, and sampled tokens as text again.

One text has one encoding: what a demonstration teaches, what a ranked response is scored by and what
a policy samples are the same tokens. So the end of a prompt and the beginning of an answer are
never one token, as they cannot be when a policy is sampled from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from transformers import PreTrainedTokenizerBase

from learners.data.chat_template import common_length, render, render_turns, turn_form
from learners.data.conversations import InvalidRow, Messages, as_messages


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str | Messages) -> list[int]:
    """Token ids of a conversation (or of its only message) up to the point where the assistant
    begins to write. Raises InvalidRow, as the other encoders here do, if the template refuses it or
    the tokenizer cannot encode it."""
    return encode_text(tokenizer, render(tokenizer, as_messages(prompt), open_turn=True))


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: Messages
) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation that the assistant ends, up to its end token, and the mask of what
    the assistant writes, end tokens included."""
    answered = []
    for message in messages:
        if message["role"] == "assistant":
            message = {**message, "content": _without_end(tokenizer, message["content"])}
        answered.append(message)
    text, turns = render_turns(tokenizer, answered)
    ids, mask = _encode_spans(tokenizer, text, [(turn.start, turn.end) for turn in turns])
    # Nothing comes before the first token of a sequence, so nothing predicts it.
    mask[0] = False
    return ids, mask


def encode_response(
    tokenizer: PreTrainedTokenizerBase, prompt: str | Messages, response: str, ended: bool
) -> list[int]:
    """Token ids of a prompt and a response to it, as a demonstration of the same text has them. A
    response that was cut off (`ended` false) has no end token."""
    messages = as_messages(prompt)
    response = _without_end(tokenizer, response)
    opened = render(tokenizer, messages, open_turn=True)
    answered = [*messages, {"role": "assistant", "content": response}]
    text, turns = render_turns(tokenizer, answered, last_only=True)
    last = turns[-1]
    end = last.end if ended else last.words_end
    if not _continues(text, opened, last.start, response):
        # As a policy goes on.
        opening = turn_form(tokenizer).opening
        if not opening.isspace() or response.startswith(opening):
            opening = ""
        text = opened + opening + response
        if ended:
            text += str(tokenizer.eos_token)
        end = len(text)
    return _encode_spans(tokenizer, text[:end], [(len(opened), end)])[0]


def encode_rendered(
    tokenizer: PreTrainedTokenizerBase, prompt: str | Messages, response: str, ended: bool
) -> list[int]:
    """Token ids of a prompt and a response to it as the template writes them, encoded as one text: what a
    reward model with a tokenizer of its own reads, since it was not sampled from. Up to the end token; a
    response that was cut has none."""
    answered = [*as_messages(prompt), {"role": "assistant", "content": _without_end(tokenizer, response)}]
    text, turns = render_turns(tokenizer, answered, last_only=True)
    end = turns[-1].end if ended else turns[-1].words_end
    return encode_text(tokenizer, text[:end])


def _without_end(tokenizer: PreTrainedTokenizerBase, words: str) -> str:
    # Many data sets have the end token in the text already, beside which the template writes another.
    stripped, end_token = words.rstrip(), str(tokenizer.eos_token)
    return stripped.removesuffix(end_token) if stripped.endswith(end_token) else words


def _continues(text: str, opened: str, start: int, response: str) -> bool:
    """Whether the template answers the prompt as a policy does, which continues it. Not if it begins an
    answered conversation differently, cuts white space off that the policy has written, or would put
    something before the words that the policy has written already."""
    if not text.startswith(opened) or start < len(opened):
        return False
    answer = text[len(opened) :]
    if response in answer:
        opening = answer[: answer.index(response)]
        return not (opening and response.startswith(opening))
    return response.strip() not in answer


def response_texts(
    tokenizer: PreTrainedTokenizerBase, responses: Sequence[np.ndarray | list[int]]
) -> list[str]:
    """What a policy wrote, without its end token and padding, but with other special tokens: rewards,
    judges and labelers get it, and `encode_response` gives the same tokens back."""
    end_token, pad_token = tokenizer.eos_token_id, tokenizer.pad_token_id
    sequences = []
    for response in responses:
        ids = [int(i) for i in response if i != pad_token]
        if ids and ids[-1] == end_token:
            ids.pop()
        # Decoders of SentencePiece drop a space at the beginning, so something stands before it.
        sequences.append([end_token, *ids])
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    before = tokenizer.decode([end_token], **options)
    # White space that the template itself puts before an answer is no part of it.
    opening = turn_form(tokenizer).opening
    texts = []
    for text in tokenizer.batch_decode(sequences, **options):
        text = text.removeprefix(before)
        if opening.isspace():
            text = text.removeprefix(opening)
        texts.append(text)
    return texts


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text as it stands. Raises InvalidRow if the tokenizer cannot encode it."""
    try:
        return list(tokenizer.encode(text, add_special_tokens=False))
    except Exception as error:  # for example half of a surrogate pair, on which each tokenizer differs
        reason = str(error).strip().partition("\n")[0]
        raise InvalidRow(f"the tokenizer cannot encode the text ({type(error).__name__}: {reason})") from None


def _encode_spans(
    tokenizer: PreTrainedTokenizerBase, text: str, spans: Sequence[tuple[int, int]]
) -> tuple[list[int], list[bool]]:
    """Token ids of a text, and a mask of the tokens of spans of its characters.

    Where a token would contain what is before a span and its first characters (a line break of the
    header and one of the answer), the two sides are encoded apart, as they are when a policy is
    sampled from. Compared by tokens and not by the offsets of characters that some tokenizers give,
    since those leave white space out."""
    done: list[int] = []
    base = 0
    # Tokens of the text from character `base` on.
    rest = encode_text(tokenizer, text)
    marked: list[tuple[int, int]] = []
    for start, end in spans:
        before = encode_text(tokenizer, text[base:start])
        if rest[: len(before)] != before or _takes_space(tokenizer, before, text[start:end]):
            done += before
            base = start
            rest, before = encode_text(tokenizer, text[base:]), []
        last = len(rest)
        if end < len(text):
            last = common_length(rest, encode_text(tokenizer, text[base:end]))
        marked.append((len(done) + len(before), len(done) + last))
    ids = done + rest
    mask = [False] * len(ids)
    for first, last in marked:
        mask[first:last] = [True] * (last - first)
    return ids, mask


def _takes_space(tokenizer: PreTrainedTokenizerBase, before: list[int], words: str) -> bool:
    """Whether the last token before an answer would take its first white space in (as the headers of
    some models do), which no policy is kept from writing."""
    return bool(before) and words[:1].isspace() and before[-1] in _rstrip_tokens(tokenizer)


@lru_cache(maxsize=8)
def _rstrip_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    return frozenset(i for i, token in tokenizer.added_tokens_decoder.items() if token.rstrip)
