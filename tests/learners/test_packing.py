"""A sequence means the same to a model alone, padded on either side, and packed with others."""

import numpy as np
import pytest
import torch

from learners.data.batching import pack, position_ids
from learners.data.tokenizer import train_tokenizer
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
    return pack(SEQUENCES, LEARNED, 0, packing)


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


def test_left_padding_gives_the_logprobs_of_right_padding(folder):
    model, tokens = load_policy(folder / "policy"), torch.from_numpy(SEQUENCES[0].astype(np.int64))[None]
    mask = torch.tensor([[0, 0, 0] + [1] * 9])
    padded = torch.nn.functional.pad(tokens, (3, 0))
    with torch.no_grad():
        plain = model(input_ids=tokens).logits
        left = model(input_ids=padded, attention_mask=mask, position_ids=position_ids(mask)).logits
    torch.testing.assert_close(left[:, 3:], plain, rtol=1e-4, atol=1e-5)
