"""Reward models of a scoring actor that have a tokenizer or chat template of their own: texts are rendered
and encoded for them, and the score is read at the end token that this writes.

`actors.scoring` runs those that read the policy's tokens itself, in the same rows as the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from actors.text_rewards import RewardRequest, RewardResult
from common.errors import UserError
from learners.data.batching import plan_micro_batches
from learners.data.conversations import InvalidRow
from learners.data.packing import pack
from learners.data.reward_tokenizer import has_tokenizer, own_tokenizer
from learners.data.turn_tokens import encode_rendered
from learners.models import read_config


@dataclass(frozen=True)
class RewardModel:
    """A reward model on its device."""

    module: Any
    """A ScalarModule, or the leader's part of one that is cut over several devices."""
    tokenizer: PreTrainedTokenizerBase | None = None
    """Its own; None: it reads the policy's tokens."""
    positions: int | None = None
    """Longest sequence that it is made for; None if it has no limit."""

    def score_texts(
        self, requests: Sequence[RewardRequest], budget: int, span: float | None, device: torch.device
    ) -> list[RewardResult]:
        """The score of each response, rendered with the tokenizer of its own. A response that the template
        refuses, or that is too long for the model, has a reason instead. `budget` is the largest number of
        tokens of a forward pass."""
        results: dict[int, RewardResult] = {}
        sequences: dict[int, np.ndarray] = {}
        for b, request in enumerate(requests):
            try:
                sequences[b] = self._encode(request)
            except InvalidRow as error:
                results[b] = RewardResult(float("nan"), str(error))
        members, ordered = list(sequences), list(sequences.values())
        lengths = [len(sequence) for sequence in ordered]
        for micro in plan_micro_batches(lengths, 1, budget, span, budget_key="scoring.batch_tokens")[0]:
            if not micro:
                continue
            scores = self._scores([ordered[i] for i in micro], span, device)
            for i, score in zip(micro, scores, strict=True):
                results[members[i]] = RewardResult(score, "not finite")
        return [results[b] for b in range(len(requests))]

    def _encode(self, request: RewardRequest) -> np.ndarray:
        assert self.tokenizer is not None
        if "prompt" not in request.row:
            raise InvalidRow("the prompt's text is not known, which a reward model of other tokens needs")
        ids = encode_rendered(self.tokenizer, request.row["prompt"], request.response, request.ended)
        if self.positions is not None and len(ids) > self.positions:
            raise InvalidRow(f"{len(ids)} tokens, over the {self.positions} positions of the reward model")
        return np.array(ids, dtype=np.int32)

    def _scores(self, sequences: list[np.ndarray], span: float | None, device: torch.device) -> list[float]:
        assert self.tokenizer is not None
        no_targets = [np.zeros(len(sequence), dtype=bool) for sequence in sequences]
        packed = pack(sequences, no_targets, self.tokenizer.pad_token_id, span).to(device)
        scalars_RT = self.module(packed.tokens_RT, packed.positions_RT, packed.attention_RTT)
        scores = np.zeros(len(sequences))
        scores[packed.order] = scalars_RT.flatten()[packed.last_S].float().cpu().numpy()
        return [float(score) for score in scores]


def as_reward_model(
    module: Any, path: str, policy: str, policy_tokenizer: PreTrainedTokenizerBase, chat_template: str | None
) -> RewardModel:
    """A loaded reward model, with the tokenizer of its own if it has one. Raises UserError if it has none and
    another vocabulary than the policy."""
    reward, reference = read_config(path).get_text_config(), read_config(policy).get_text_config()
    tokenizer = own_tokenizer(path, policy_tokenizer, chat_template)
    rows = reward.vocab_size
    fits = has_tokenizer(path) and rows >= len(policy_tokenizer)
    if tokenizer is None and rows != reference.vocab_size and not fits:
        raise UserError(
            f"{path}: the reward model's vocabulary has {rows} entries, the policy's ({policy}) "
            f"{reference.vocab_size}; without a tokenizer of its own both must come from one tokenizer"
        )
    return RewardModel(module, tokenizer, getattr(reward, "max_position_embeddings", None))
