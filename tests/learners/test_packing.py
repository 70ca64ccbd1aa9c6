"""A sequence means the same to a model alone, padded on either side, and packed with others."""

import math

import numpy as np
import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM, MistralConfig, MistralForCausalLM

from learners.data.batching import group_by_prompt, group_length
from learners.data.packing import pack
from learners.data.tokenizer import train_tokenizer
from learners.forward_checks import can_share_prompts
from learners.models import (
    PolicyModule,
    ScalarModule,
    build_policy,
    load_policy,
    load_scalar,
    scalar_from_policy,
)
from tests.learners import fixtures


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("packing")
    tokenizer = train_tokenizer(fixtures.TEXTS, 320)
    build_policy(fixtures.MODEL, tokenizer, seed=3).save_pretrained(path / "policy")
    scalar_from_policy(path / "policy", seed=4).save_pretrained(path / "reward")
    return path


SEQUENCES = [np.random.default_rng(n).integers(8, 300, n).astype(np.int32) for n in (9, 3, 14, 6, 6, 11)]
LEARNED = [np.arange(len(s)) >= 2 for s in SEQUENCES]


def packed_batch(packing):
    return pack(SEQUENCES, LEARNED, 0, math.inf if packing else None)


@torch.no_grad()
def by_sequence(batch, flat):
    parts = flat.split([int(LEARNED[i].sum()) for i in batch.order])
    return dict(zip(batch.order, parts, strict=True))


def test_packed_logprobs_and_scalars_are_those_of_padded_rows(folder):
    policy, scalar = (
        PolicyModule(load_policy(folder / "policy")),
        ScalarModule(load_scalar(folder / "reward")),
    )
    outputs = []
    for packing in (False, True):
        batch = packed_batch(packing)
        assert (batch.positions_RT is not None) == packing
        logprobs, _ = policy(batch.tokens_RT, batch.target_mask_RT, batch.positions_RT)
        values = scalar(batch.tokens_RT, batch.positions_RT)[batch.target_mask_RT]
        outputs.append((by_sequence(batch, logprobs), by_sequence(batch, values)))
    for padded, packed in zip(*outputs, strict=True):
        for i in range(len(SEQUENCES)):
            torch.testing.assert_close(packed[i], padded[i], rtol=1e-5, atol=2e-6)


PROMPTS = [np.arange(8, 8 + n, dtype=np.int32) for n in (4, 1, 6)]
ANSWERS = [(0, 5), (1, 3), (0, 2), (2, 7), (0, 6), (2, 1), (1, 1)]
ANSWERING = [
    np.concatenate([PROMPTS[p], np.random.default_rng(n).integers(20, 300, size)]).astype(np.int32)
    for n, (p, size) in enumerate(ANSWERS)
]


def test_responses_that_share_their_prompt_get_what_they_get_alone(folder):
    policy = PolicyModule(load_policy(folder / "policy"))
    scalar = ScalarModule(load_scalar(folder / "reward"))
    assert can_share_prompts(policy.model)
    assert can_share_prompts(scalar.model)
    lengths = [len(PROMPTS[p]) for p, _ in ANSWERS]
    targets = [np.arange(len(s)) >= n for s, n in zip(ANSWERING, lengths, strict=True)]
    logprobs, values, last, gradients = [], [], [], []
    for prompt_lengths in (None, lengths):
        batch = pack(ANSWERING, targets, 0, math.inf, prompt_lengths)
        policy.zero_grad()
        logprobs_N, _ = policy(
            batch.tokens_RT, batch.target_mask_RT, batch.positions_RT, batch.before_N, batch.attention_RTT
        )
        logprobs_N.square().sum().backward()
        gradients.append([p.grad.clone() for p in policy.parameters()])
        scalars = scalar(batch.tokens_RT, batch.positions_RT, batch.attention_RTT).flatten()
        sizes = [ANSWERS[i][1] for i in batch.order]
        logprobs.append(dict(zip(batch.order, logprobs_N.split(sizes), strict=True)))
        values.append(dict(zip(batch.order, scalars[batch.before_N].split(sizes), strict=True)))
        last.append(dict(zip(batch.order, scalars[batch.last_S], strict=True)))
    # Three prompts stand in the rows once each.
    assert batch.num_tokens == sum(map(len, PROMPTS)) + sum(size for _, size in ANSWERS)
    for plain, shared in (logprobs, values, last):
        for i in range(len(ANSWERS)):
            torch.testing.assert_close(shared[i], plain[i], rtol=1e-5, atol=2e-6)
    for plain, shared in zip(*gradients, strict=True):
        torch.testing.assert_close(shared, plain, rtol=1e-4, atol=1e-5)


def test_a_group_over_the_budget_is_divided():
    lengths = [len(PROMPTS[p]) for p, _ in ANSWERS]
    assert group_by_prompt(ANSWERING, lengths, math.inf) == [[0, 2, 4], [1, 6], [3, 5]]
    groups = group_by_prompt(ANSWERING, lengths, math.inf, budget=11)
    assert sorted(i for group in groups for i in group) == list(range(len(ANSWERING)))
    for group in groups:
        assert len(group) == 1 or group_length([len(ANSWERING[i]) for i in group], lengths[group[0]]) <= 11


def test_prompts_are_shared_only_where_every_token_sees_what_it_sees_alone():
    config = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    assert can_share_prompts(MistralForCausalLM(MistralConfig(sliding_window=None, **config, **heads)))
    assert not can_share_prompts(MistralForCausalLM(MistralConfig(sliding_window=4, **config, **heads)))
    # A state that runs along the row knows nothing of masks.
    recurrent = MambaForCausalLM(MambaConfig(vocab_size=32, hidden_size=32, num_hidden_layers=1)).eval()
    assert not can_share_prompts(recurrent)
