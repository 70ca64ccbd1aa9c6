"""From rows to tokens: the corpus packed, conversations in the chat template, rankings by prompt, prompts to sample from.

Called by the stages of the driver. Rows over the context go through `DatasetReader.fitted`, which refuses, leaves out or
shortens them as the config says.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from transformers import PreTrainedTokenizerBase

from common.errors import UserError
from learners.data.datasets import RankingData, TokenData, hold_out
from learners.data.records import Messages, Row, as_messages
from learners.data.samples import offsets_of
from learners.data.sources import DatasetReader, SourceRow
from learners.data.tokenizer import document_separator, encode_prompt

K_MOST = 9  # responses that one element of a reward batch has at most, as in Ouyang et al. 2022, section 3.5


def pack_corpus(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    validation_share: float = 0.1,
    seed: int = 0,
) -> TokenData:
    """Documents, each closed by the separator, joined and cut into sequences of `length` tokens (the rest is dropped).
    Validation sequences are drawn by the seed; from a single document they are its end, which no other one overlaps."""
    separator = document_separator(tokenizer)
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    stream = np.concatenate([np.array([*ids, separator], dtype=np.int32) for ids in encoded])
    count = len(stream) // length
    if count < 2:
        raise UserError(
            f"the corpus has {len(stream)} tokens, too few for two of pretrain.sequence_length={length}"
        )
    loss_mask_N = np.ones(count * length, dtype=bool)
    loss_mask_N[::length] = False
    tail_S = np.arange(count) >= count - max(1, round(count * validation_share))
    return TokenData(
        tokens_N=stream[: count * length],
        offsets=np.arange(count + 1, dtype=np.int64) * length,
        loss_mask_N=loss_mask_N,
        is_validation_S=tail_S if len(texts) == 1 else hold_out(range(count), validation_share, seed),
    )


def encode_prompts(
    rows: Sequence[SourceRow], tokenizer: PreTrainedTokenizerBase, limit: int, reader: DatasetReader
) -> tuple[list[Row], list[list[int]]]:
    """(rows, token ids) of the prompts that have at most `limit` tokens, or are brought to that."""
    kept, tokens = [], []
    for where, row in rows:
        messages = as_messages(row["prompt"])

        def encode(text: str, messages: Messages = messages) -> list[int]:
            return encode_prompt(tokenizer, _ending(messages, text))

        if fitted := reader.fitted(where, messages[-1]["content"], encode, limit):
            shown = fitted[0] if isinstance(row["prompt"], str) else _ending(messages, fitted[0])
            kept.append({**row, "prompt": shown})
            tokens.append(fitted[1])
    return kept, tokens


def encode_demonstrations(
    rows: Sequence[SourceRow],
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    reader: DatasetReader,
    validation_share: float = 0.1,
    seed: int = 0,
) -> TokenData:
    """Conversations in the tokenizer's chat template; only the assistant's tokens are learned, the end token too."""
    sequences, masks = [], []
    owners: list[Hashable] = []
    for where, row in rows:
        messages = row["messages"]

        def encode(text: str, messages: Messages = messages) -> list[tuple[int, bool]]:
            return list(zip(*encode_conversation(_ending(messages, text), tokenizer), strict=True))

        fitted = reader.fitted(where, messages[-1]["content"], encode, context)
        if not fitted:
            continue
        ids, mask = zip(*fitted[1], strict=True)
        if not any(mask):
            raise UserError(f"{where}: the chat template leaves no assistant token to learn")
        sequences.append(np.array(ids, dtype=np.int32))
        masks.append(np.array(mask, dtype=bool))
        owners.append(_owner(row, reader, len(owners)))
    _refuse_few(len(set(owners)), "demonstrations", reader)
    return TokenData(
        tokens_N=np.concatenate(sequences),
        offsets=offsets_of([len(s) for s in sequences]),
        loss_mask_N=np.concatenate(masks),
        is_validation_S=hold_out(owners, validation_share, seed),
    )


def encode_conversation(
    messages: Messages, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[bool]]:
    """Token ids and assistant mask. A template without {% generation %} marks gets its mask by rendering prefixes."""
    if "{% generation %}" in str(tokenizer.chat_template):
        encoded = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        return list(encoded["input_ids"]), [bool(m) for m in encoded["assistant_masks"]]
    ids: list[int] = []
    mask: list[bool] = []
    for end in range(1, len(messages) + 1):
        opening = messages[end - 1]["role"] == "assistant"
        for upto, asked, learn in (
            ((end - 1, True, False), (end, False, True)) if opening else ((end, False, False),)
        ):
            given: dict[str, Any] = {"tokenize": False, "add_generation_prompt": asked}
            text = tokenizer.apply_chat_template(messages[:upto], **given) if upto else ""
            full = list(tokenizer.encode(text, add_special_tokens=False))
            if full[: len(ids)] != ids:
                raise UserError(
                    f"tokenizer {tokenizer.name_or_path}: its chat template writes the start of a conversation differently once "
                    "it goes on, so the assistant's tokens cannot be told; mark them with {% generation %} in the template"
                )
            mask += [learn] * (len(full) - len(ids))
            ids = full
    return ids, mask


def encode_rankings(
    rows: Sequence[SourceRow],
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    reader: DatasetReader,
    validation_share: float = 0.1,
    seed: int = 0,
    worth: Callable[[Row, str, bool], float] | None = None,
) -> RankingData:
    """Rankings grouped by prompt: responses to it run once, whoever ranked them, in whatever combination. A prompt that was
    answered again and again makes several groups of up to K_MOST responses: elements of a batch stay of one size, and one
    epoch comes back to it. `worth` is what a response is truly worth, where a judge knows."""
    groups: list[_Group] = []
    newest: dict[str, _Group] = {}
    owners: list[tuple[str, Hashable]] = []
    for where, row in rows:
        key = str(row["prompt"])
        prompt_ids = encode_prompt(tokenizer, row["prompt"])
        members: list[tuple[tuple[int, ...], float]] = []
        for response, ended in zip(row["responses"], row["ended"], strict=True):

            def encode(text: str, prompt_ids: list[int] = prompt_ids, ended: bool = ended) -> list[int]:
                written: list[int] = tokenizer.encode(text, add_special_tokens=False)
                return [*prompt_ids, *written, *([tokenizer.eos_token_id] * ended)]

            if not (fitted := reader.fitted(where, response, encode, context)):
                break
            members.append((tuple(fitted[1]), worth(row, response, ended) if worth else 0.0))
        else:
            group = newest.get(key)
            if group is None or len(group.worth.keys() | dict(members)) > K_MOST:
                group = newest[key] = _Group(key)
                groups.append(group)
            group.rankings.append(([group.place(*member) for member in members], row["ranks"]))
            owners.append((key, _owner(row, reader, key)))
    rankings = [(g, *ranking) for g, group in enumerate(groups) for ranking in group.rankings]
    owner_of = dict(zip(newest, _joined(owners), strict=True))
    owner_G = [owner_of[group.prompt] for group in groups]
    _refuse_few(len(set(owner_G)), "prompts with rankings", reader)
    sequences = [np.array(s, dtype=np.int32) for group in groups for s in group.worth]
    return RankingData(
        tokens_N=np.concatenate(sequences),
        offsets=offsets_of([len(s) for s in sequences]),
        groups=offsets_of([len(group.worth) for group in groups]),
        members_M=np.array([m for _, members, _ in rankings for m in members], dtype=np.int32),
        ranks_M=np.array([r for _, _, ranks in rankings for r in ranks], dtype=np.int32),
        ranking_offsets=offsets_of([len(members) for _, members, _ in rankings]),
        ranking_groups_R=np.array([g for g, _, _ in rankings], dtype=np.int32),
        truth=np.array([r for group in groups for r in group.true_ranks() if worth], dtype=np.int32),
        owner_G=np.array(owner_G, dtype=np.int32),
        is_validation_G=hold_out(owner_G, validation_share, seed),
    )


class _Group:
    """Different sequences of one prompt, with their worth, and the rankings of them."""

    def __init__(self, prompt: str) -> None:
        self.prompt = prompt
        self.worth: dict[tuple[int, ...], float] = {}
        self.rankings: list[tuple[list[int], list[int]]] = []

    def place(self, sequence: tuple[int, ...], worth: float) -> int:
        self.worth.setdefault(sequence, worth)
        return list(self.worth).index(sequence)

    def true_ranks(self) -> list[int]:
        order = sorted(set(self.worth.values()), reverse=True)
        return [order.index(w) + 1 for w in self.worth.values()]


def _joined(owners: Sequence[tuple[str, Hashable]]) -> list[int]:
    """One number per different prompt, the same for prompts that share an owner, directly or through others."""
    prompts = {p: i for i, p in enumerate(dict.fromkeys(p for p, _ in owners))}
    people = {o: i for i, o in enumerate(dict.fromkeys(o for _, o in owners))}
    edges = ([prompts[p] for p, _ in owners], [len(prompts) + people[o] for _, o in owners])
    size = len(prompts) + len(people)
    graph = coo_array((np.ones(len(owners)), edges), shape=(size, size))
    return connected_components(graph, directed=False)[1][: len(prompts)].tolist()


def _owner(row: Row, reader: DatasetReader, alone: Hashable) -> Any:
    """Whose row it is by `data.split_key`; a row without owner stands `alone`."""
    owner = row.get(reader.config.split_key) if reader.config.split_key else None
    return ("alone", alone) if owner is None else str(owner)


def _ending(messages: Messages, text: str) -> Messages:
    return [*messages[:-1], {**messages[-1], "content": text}]


def _refuse_few(count: int, what: str, reader: DatasetReader) -> None:
    if count < 2:
        by = f" of different {reader.config.split_key}" if reader.config.split_key else ""
        raise UserError(
            f"data.{reader.kind}: at least two {what}{by} are needed, one for validation; found {count} "
            f"({reader.counts_text()})"
        )
