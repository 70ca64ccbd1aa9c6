"""What the head of a reward model reads of a response: its last hidden state at the last token, for choosing
the responses that tell most about the model (`cluster.rounds.selection`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from actors.reward_models import RewardModel
from actors.text_rewards import RewardRequest
from common.errors import UserError
from learners.data.batching import plan_micro_batches
from learners.data.packing import pack
from learners.data.turn_tokens import encode_rendered, encode_response
from learners.models import ScalarModule, last_hidden, scalar_head


class Features(NamedTuple):
    """Of B responses."""

    features_BD: np.ndarray
    """float32: last hidden state at the last token."""
    scores_B: np.ndarray
    """float32: the head's score of it, without the bias."""


def response_features(
    model: RewardModel,
    policy_tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[RewardRequest],
    budget: int,
    span: float | None,
    device: torch.device,
) -> Features:
    """Raises UserError for a model that is cut over several devices."""
    module = model.module
    if not isinstance(module, ScalarModule):
        raise UserError("features of responses need a reward model on one device: scoring.tensor_parallel 1")
    sequences = []
    for request in requests:
        arguments = (request.row["prompt"], request.response, request.ended)
        if model.tokenizer is None:
            ids = encode_response(policy_tokenizer, *arguments)
        else:
            ids = encode_rendered(model.tokenizer, *arguments)
        sequences.append(np.array(ids, dtype=np.int32))
    pad_token = (model.tokenizer or policy_tokenizer).pad_token_id
    features_BD = np.zeros((len(sequences), module.model.config.hidden_size), dtype=np.float32)
    scores_B = np.zeros(len(sequences), dtype=np.float32)
    lengths = [len(sequence) for sequence in sequences]
    for micro in plan_micro_batches(lengths, 1, budget, span, budget_key="scoring.batch_tokens")[0]:
        if not micro:
            continue
        chosen = [sequences[b] for b in micro]
        no_targets = [np.zeros(len(sequence), dtype=bool) for sequence in chosen]
        packed = pack(chosen, no_targets, pad_token, span).to(device)
        hidden_RTD = last_hidden(module.model, packed.tokens_RT, packed.positions_RT, packed.attention_RTT)
        last_BD = hidden_RTD.flatten(0, 1)[packed.last_S]
        in_order = [micro[i] for i in packed.order]
        features_BD[in_order] = last_BD.float().cpu().numpy()
        scores_B[in_order] = scalar_head(module.model)(last_BD).squeeze(-1).float().cpu().numpy()
    return Features(features_BD, scores_B)
