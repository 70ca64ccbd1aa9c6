"""What the supervised stages learn from, as flat token arrays on disk, made once by the driver and read by every rank.

Reading goes through `read_rows`, which checks every row and names file, line and key of the first one that is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from transformers import PreTrainedTokenizerBase

from learners.errors import UserError
from learners.ragged import offsets_of
from learners.tokenizer import document_separator, encode_prompt


class _Arrays:
    """Saves and loads a dataclass of numpy arrays as one .npz file."""

    def save(self, path: Path) -> None:
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, **{f.name: getattr(self, f.name) for f in fields(self)})  # type: ignore[arg-type]
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        with np.load(path) as arrays:
            return cls(**{f.name: arrays[f.name] for f in fields(cls)})  # type: ignore[arg-type]


@dataclass
class TokenData(_Arrays):
    """Sequences with a mask of the tokens to learn."""

    tokens_N: np.ndarray
    """int32. All sequences, one after the other."""
    offsets: np.ndarray
    """int64 (S + 1). Where each starts."""
    learn_N: np.ndarray
    """bool. Tokens whose log-probability enters the loss; never the first of a sequence."""

    @property
    def lengths_S(self) -> np.ndarray:
        return np.diff(self.offsets)

    def sequence(self, s: int) -> np.ndarray:
        return self.tokens_N[self.offsets[s] : self.offsets[s + 1]]

    def learned(self, s: int) -> np.ndarray:
        return self.learn_N[self.offsets[s] : self.offsets[s + 1]]


@dataclass
class RankingData(_Arrays):
    """Ranked responses: S sequences (prompt and response) in G groups of one prompt each, with R rankings of them."""

    tokens_N: np.ndarray
    """int32. All sequences."""
    offsets: np.ndarray
    """int64 (S + 1)."""
    groups: np.ndarray
    """int64 (G + 1). Group g holds sequences groups[g] to groups[g + 1]."""
    ranks: np.ndarray
    """int32. The ranks (1 best, equal for ties) of all rankings, one after the other."""
    ranking_groups_R: np.ndarray
    """int32. The group that each ranking orders; rankings are sorted by group."""
    truth: np.ndarray
    """int32 (S,) or empty. Ranks by a judge that knows the truth: for measuring only."""

    def group(self, g: int) -> list[np.ndarray]:
        return [self.tokens_N[self.offsets[s] : self.offsets[s + 1]] for s in range(self.groups[g], self.groups[g + 1])]

    def rankings(self) -> list[list[list[int]]]:
        """rankings()[g] is the list of rankings of group g."""
        found: list[list[list[int]]] = [[] for _ in range(len(self.groups) - 1)]
        start = 0
        for g in self.ranking_groups_R:
            size = int(self.groups[g + 1] - self.groups[g])
            found[g].append(self.ranks[start : start + size].tolist())
            start += size
        return found


def read_rows(path: Path, check: Callable[[dict[str, Any]], str | None]) -> list[dict[str, Any]]:
    """Rows of a JSONL file. `check` says what is wrong with a row (None: nothing); the first fault is a UserError."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; it should hold one JSON object a line")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as fault:
            raise UserError(f"{path}, line {number}: not valid JSON ({fault.msg} at column {fault.colno})") from None
        wrong = check(row) if isinstance(row, dict) else "expected a JSON object"
        if wrong:
            raise UserError(f"{path}, line {number}: {wrong}")
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: the file is empty; it should hold one JSON object a line")
    return rows


def check_prompt(row: dict[str, Any]) -> str | None:
    ok = isinstance(row.get("prompt"), str) and row["prompt"].strip()
    return None if ok else "key 'prompt': expected a text that is not empty"


def check_demonstration(row: dict[str, Any]) -> str | None:
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        return 'key \'messages\': expected a list like [{"role": "user", "content": …}, {"role": "assistant", "content": …}]'
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
            return f"key 'messages[{i}].role': expected system, user or assistant"
        if not isinstance(message.get("content"), str):
            return f"key 'messages[{i}].content': expected a text"
    return None if messages[-1]["role"] == "assistant" else "key 'messages': the last message must be the assistant's"


def check_ranking(row: dict[str, Any]) -> str | None:
    wrong = check_prompt(row)
    responses, ranks = row.get("responses"), row.get("ranks")
    if wrong:
        return wrong
    if not isinstance(responses, list) or len(responses) < 2 or not all(isinstance(r, str) for r in responses):
        return "key 'responses': expected a list of at least two texts"
    if not isinstance(ranks, list) or len(ranks) != len(responses) or not all(type(r) is int and r >= 1 for r in ranks):
        return f"key 'ranks': expected {len(responses)} whole numbers from 1 (best), equal for ties"
    ended = row.get("ended", [])
    if ended and (len(ended) != len(responses) or not all(isinstance(e, bool) for e in ended)):
        return f"key 'ended': expected {len(responses)} times true or false"
    return None


def pack_corpus(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int) -> TokenData:
    """Documents, each closed by the separator, joined and cut into sequences of `length` tokens (the rest is dropped)."""
    separator = document_separator(tokenizer)
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    stream = np.concatenate([np.array([*ids, separator], dtype=np.int32) for ids in encoded])
    count = len(stream) // length
    learn_N = np.ones(count * length, dtype=bool)
    learn_N[::length] = False
    return TokenData(stream[: count * length], np.arange(count + 1, dtype=np.int64) * length, learn_N)


def encode_demonstrations(
    rows: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, context: int, source: Path
) -> TokenData:
    """Conversations in the tokenizer's chat template; only the assistant's tokens are learned, the end token too."""
    sequences, masks = [], []
    for number, row in enumerate(rows, 1):
        ids, mask = _encode_conversation(row["messages"], tokenizer)
        if len(ids) > context:
            raise UserError(
                f"{source}, row {number}: {len(ids)} tokens, but model.context is {context}; shorten it or raise the context"
            )
        if not any(mask):
            raise UserError(f"{source}, row {number}: the chat template leaves no assistant token to learn")
        sequences.append(np.array(ids, dtype=np.int32))
        masks.append(np.array(mask, dtype=bool))
    return TokenData(np.concatenate(sequences), offsets_of([len(s) for s in sequences]), np.concatenate(masks))


def _encode_conversation(
    messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase
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
        for upto, prompt, learn in ((end - 1, True, False), (end, False, True)) if opening else ((end, False, False),):
            text = (
                tokenizer.apply_chat_template(messages[:upto], tokenize=False, add_generation_prompt=prompt)
                if upto
                else ""
            )
            full = tokenizer.encode(text, add_special_tokens=False)
            mask += [learn] * (len(full) - len(ids))
            ids = list(full)
    return ids, mask


def encode_rankings(
    rows: Sequence[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    source: Path,
    truth: Callable[[dict[str, Any]], list[int]] | None = None,
) -> RankingData:
    """Rankings grouped by (prompt, responses): the same responses ranked by two labelers are one group."""
    grouped: dict[tuple[str, tuple[str, ...]], list[dict[str, Any]]] = {}
    for row in rows:
        grouped.setdefault((row["prompt"], tuple(row["responses"])), []).append(row)
    sequences, sizes, ranks, ranking_groups, true_ranks = [], [], [], [], []
    for g, ((prompt, responses), rankings) in enumerate(grouped.items()):
        prompt_ids = encode_prompt(tokenizer, prompt)
        ended = rankings[0].get("ended") or [True] * len(responses)
        for response, closed in zip(responses, ended, strict=True):
            ids = prompt_ids + tokenizer.encode(response, add_special_tokens=False) + [tokenizer.eos_token_id] * closed
            if len(ids) > context:
                raise UserError(
                    f"{source}: prompt {prompt[:60]!r} with its response has {len(ids)} tokens, but model.context is {context}"
                )
            sequences.append(np.array(ids, dtype=np.int32))
        sizes.append(len(responses))
        for ranking in rankings:
            ranks += ranking["ranks"]
            ranking_groups.append(g)
        if truth is not None:
            true_ranks += truth(rankings[0])
    return RankingData(
        tokens_N=np.concatenate(sequences),
        offsets=offsets_of([len(s) for s in sequences]),
        groups=offsets_of(sizes),
        ranks=np.array(ranks, dtype=np.int32),
        ranking_groups_R=np.array(ranking_groups, dtype=np.int32),
        truth=np.array(true_ranks, dtype=np.int32),
    )
