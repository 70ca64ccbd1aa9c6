"""From records to tokens: the packed corpus, conversations in the chat template, rankings by
prompt, prompts to sample from.

Called by the stages of the driver. Rows over the context go through
`DatasetReader.fit_to_length`, which refuses, leaves out or shortens them as the config says."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

import numpy as np
from transformers import PreTrainedTokenizerBase

from common.errors import UserError
from learners.data.conversations import InvalidRow, Messages, as_messages, normalized_text
from learners.data.datasets import TokenData
from learners.data.records import Row
from learners.data.samples import offsets_of
from learners.data.sources import DatasetReader, SourceRow
from learners.data.split import EmptySideError, held_out, split_position, split_threshold
from learners.data.tokenizer import document_separator
from learners.data.turn_tokens import encode_conversation, encode_prompt

ALWAYS_TRAINING, ALWAYS_VALIDATION = 1.0, -1.0  # positions beyond every threshold


def pack_corpus(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, validation_share: float = 0.1
) -> TokenData:
    """Documents, each closed by the separator, joined and cut into sequences of `length` tokens; an
    incomplete last sequence is dropped. Training sequences come first, then validation sequences.

    Short documents are held out whole by the hash of their text. A document so long that
    `validation_share` of it is a sequence or more, or that is the only one, is cut: its end is
    held out. Either way the other documents do not matter, so adding some moves none of these.

    Raises UserError if the corpus is too small for a sequence of each side."""
    separator = document_separator(tokenizer)
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    pieces: list[np.ndarray] = []
    positions: list[float] = []
    for text, ids in zip(texts, encoded, strict=True):
        tokens_N = np.array([*ids, separator], dtype=np.int32)
        sequences = len(tokens_N) // length
        # Whole books would make the held-out part far too large or empty, so they are cut. The end
        # is taken, since in any other place a training sequence would continue what is held out.
        is_long = len(texts) == 1 or len(tokens_N) * validation_share >= length
        if is_long and sequences >= 2:
            # Cut between two sequences, so that neither side loses tokens to the cut.
            end = (sequences - max(1, round(sequences * validation_share))) * length
            pieces += [tokens_N[:end], tokens_N[end:]]
            positions += [ALWAYS_TRAINING, ALWAYS_VALIDATION]
        else:
            pieces.append(tokens_N)
            positions.append(split_position(normalized_text(text)))
    sizes = [len(piece) for piece in pieces]
    try:
        is_held = held_out(positions, validation_share, sizes, minimum=length)
    except EmptySideError:
        raise UserError(
            f"the corpus has {sum(sizes)} tokens, too few for a training and a validation sequence of "
            f"pretrain.sequence_length={length}"
        ) from None
    training_N = _whole_sequences(pieces, ~is_held, length)
    validation_N = _whole_sequences(pieces, is_held, length)
    tokens_N = np.concatenate([training_N, validation_N])
    count = len(tokens_N) // length
    loss_mask_N = np.ones(len(tokens_N), dtype=bool)
    # Nothing comes before the first token of a sequence, so nothing predicts it.
    loss_mask_N[::length] = False
    return TokenData(
        tokens_N=tokens_N,
        offsets=np.arange(count + 1, dtype=np.int64) * length,
        loss_mask_N=loss_mask_N,
        is_validation_S=np.arange(count) >= len(training_N) // length,
    )


def _whole_sequences(pieces: list[np.ndarray], chosen: np.ndarray, length: int) -> np.ndarray:
    """The chosen pieces joined, without what does not fill a sequence at the end."""
    joined_N = np.concatenate([pieces[i] for i in np.flatnonzero(chosen)])
    return joined_N[: len(joined_N) // length * length]


def encode_prompts(
    rows: Sequence[SourceRow], tokenizer: PreTrainedTokenizerBase, limit: int, reader: DatasetReader
) -> tuple[list[Row], list[list[int]]]:
    """(rows, token ids) of the prompts that have at most `limit` tokens, or are shortened to
    that. A row is a plain dict with all keys of the user's, as reward functions and judges take
    it."""
    kept: list[Row] = []
    tokens: list[list[int]] = []
    for where, record in rows:
        messages = as_messages(record.prompt)
        encode = partial(_encode_prompt_ending, tokenizer, messages)
        try:
            fitted = reader.fit_to_length(where, messages[-1]["content"], encode, limit)
        except InvalidRow as error:
            reader.leave_out_invalid(where, error)
            continue
        if fitted is None:
            continue
        text, ids = fitted
        # A text stays a text: functions of the user get the prompt in the form of their file.
        prompt: str | Messages = text
        if not isinstance(record.prompt, str):
            prompt = _with_ending(messages, text)
        kept.append({**record.user_row(), "prompt": prompt})
        tokens.append(ids)
    return kept, tokens


def encode_demonstrations(
    rows: Sequence[SourceRow],
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    reader: DatasetReader,
    validation_share: float = 0.1,
) -> TokenData:
    """Conversations in the tokenizer's chat template; only the assistant's tokens are learned,
    the end token too, with which each ends.

    Held out by `data.split_key` or, without it, by the conversation up to the last message of the
    user. Raises UserError for fewer than two different ones."""
    sequences: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    positions: list[float] = []
    for where, record in rows:
        encode = partial(_encode_conversation_ending, tokenizer, record.messages)
        try:
            fitted = reader.fit_to_length(where, record.messages[-1]["content"], encode, context)
        except InvalidRow as error:
            reader.leave_out_invalid(where, error)
            continue
        if fitted is None:
            continue
        ids, mask = zip(*fitted[1], strict=True)
        sequences.append(np.array(ids, dtype=np.int32))
        masks.append(np.array(mask, dtype=bool))
        positions.append(split_position(reader.split_value(record) or record.split_text))
    threshold = choose_threshold(positions, validation_share, "demonstrations", reader)
    return TokenData(
        tokens_N=np.concatenate(sequences),
        offsets=offsets_of([len(sequence) for sequence in sequences]),
        loss_mask_N=np.concatenate(masks),
        is_validation_S=np.array(positions) < threshold,
    )


def choose_threshold(
    positions: Sequence[float] | np.ndarray, share: float, what: str, reader: DatasetReader
) -> float:
    """The threshold below which the position of a row must be for it to be held out; `positions`
    has one for each row. Warns if more than half of the rows are. Raises UserError if there are
    not two different positions."""
    different = len(np.unique(positions))
    if different < 2:
        key = reader.config.split_key
        by, advice = "", ""
        if key:
            by = f" of different {key}"
            advice = f"; leave data.split_key out if one {key} has rows of all prompts"
        raise UserError(
            f"data.{reader.kind}: at least two {what}{by} are needed, one for validation; "
            f"there is {different} ({reader.stats_text()}){advice}"
        )
    threshold = split_threshold(positions, share)
    not_trained = float(np.mean(np.asarray(positions) < threshold))
    # Not an error: two prompts, of which one was ranked more often, are a legal data set.
    if not_trained > 0.5:
        logging.warning(
            "data.%s: %.0f%% of the rows are not trained on, since they belong to a prompt or to a value "
            "of data.split_key that is held out for validation",
            reader.kind,
            100 * not_trained,
        )
    return threshold


def _with_ending(messages: Messages, text: str) -> Messages:
    """The conversation with another text in its last message."""
    return [*messages[:-1], {**messages[-1], "content": text}]


def _encode_prompt_ending(tokenizer: PreTrainedTokenizerBase, messages: Messages, text: str) -> list[int]:
    return encode_prompt(tokenizer, _with_ending(messages, text))


def _encode_conversation_ending(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, text: str
) -> list[tuple[int, bool]]:
    """(token id, whether it is learned) of a conversation with another last message."""
    ids, mask = encode_conversation(tokenizer, _with_ending(messages, text))
    return list(zip(ids, mask, strict=True))
