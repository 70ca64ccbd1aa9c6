"""Log-probabilities in chunks are those in one piece: values, gradients, and updates of every ZeRO
stage."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from learners import logprobs
from learners.config import LearnerConfig, LoRAConfig, ModelConfig
from learners.logprobs import CHUNK_ENTRIES, chunked_logprobs, num_chunks
from tests.learners import fixtures


def case(dtype, tokens=37, width=24, vocabulary=501):
    torch.manual_seed(0)
    hidden_ND = torch.randn(tokens, width, dtype=dtype, requires_grad=True)
    weight_VD = torch.randn(vocabulary, width, dtype=dtype, requires_grad=True)
    return hidden_ND, weight_VD, torch.randint(0, vocabulary, (tokens,)), torch.randn(tokens)


def scaled_head(weight_VD, hidden_ND):
    return F.linear(hidden_ND, weight_VD) / 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunks", [2, 5, 50])
def test_chunks_give_the_values_and_gradients_of_one_piece(dtype, temperature, chunks):
    results = []
    for count in (1, chunks):
        hidden_ND, weight_VD, targets_N, factors_N = case(dtype)
        head = partial(scaled_head, weight_VD)
        values = chunked_logprobs(head, hidden_ND, targets_N, temperature, with_entropy=True, chunks=count)
        (values[0] * factors_N).sum().backward()
        results.append((*values, hidden_ND.grad, weight_VD.grad))
    for whole, chunked in zip(*results, strict=True):
        assert float((whole - chunked).detach().abs().max() / whole.detach().abs().max()) < 1e-6


def test_the_value_is_the_log_softmax_of_the_logits():
    hidden_ND, weight_VD, targets_N, _ = case(torch.float64)
    head = partial(scaled_head, weight_VD)
    logprobs_N, entropy_N = chunked_logprobs(head, hidden_ND, targets_N, 0.7, with_entropy=True, chunks=4)
    log_p_NV = (head(hidden_ND) / 0.7).log_softmax(-1)
    expected_N = log_p_NV[torch.arange(37), targets_N]
    torch.testing.assert_close(logprobs_N.double(), expected_N, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(entropy_N.double(), -(log_p_NV.exp() * log_p_NV).sum(-1), rtol=1e-6, atol=1e-6)


def test_small_vocabularies_run_in_one_chunk():
    assert num_chunks(0, 1280) == num_chunks(8192, 1280) == 1
    assert num_chunks(4096, 151_936) == 10
    assert num_chunks(3, 2 * CHUNK_ENTRIES) == 3


class LargestOutput(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        if isinstance(output, torch.Tensor):
            self.entries = max(self.entries, output.numel())
        return output


@pytest.mark.parametrize("backward", [True, False])
def test_no_tensor_of_all_logits_is_ever_made(backward):
    hidden_ND, weight_VD, targets_N, factors_N = case(torch.float32, tokens=96, width=8, vocabulary=600)
    with LargestOutput() as largest, torch.set_grad_enabled(backward):
        head = partial(scaled_head, weight_VD)
        logprobs_N, _ = chunked_logprobs(head, hidden_ND, targets_N, 0.7, with_entropy=True, chunks=8)
        if backward:
            (logprobs_N * factors_N).sum().backward()
    assert largest.entries == 12 * 600


def updates(actor, folder, chunk_entries):
    """Weights after pretraining and PPO steps with chunks of this size."""
    logprobs.CHUNK_ENTRIES = chunk_entries
    return fixtures.pretrain(actor, folder)[1], fixtures.ppo(actor, folder)[1]


LORA = {"path": "policy", "lora": LoRAConfig(rank=4, alpha=8, targets=["q_proj", "lm_head"])}


@pytest.mark.parametrize(
    ("ranks", "stage", "changes"),
    [
        (1, 0, {}),
        (2, 1, {}),
        (2, 2, {"gradient_checkpointing": True}),
        (2, 3, {}),
        (2, 3, LORA),
    ],
)
def test_updates_in_chunks_are_those_in_one_piece(tmp_path, ranks, stage, changes):
    fixtures.make_files(tmp_path)
    model = fixtures.MODEL.model_copy(update=changes)
    if "path" in changes:
        model = ModelConfig(path=str(tmp_path / "policy"), context=64, lora=changes["lora"])
    config = LearnerConfig(ranks=1, zero_stage=0, micro_batch_tokens=512, dtype="float32")
    whole = fixtures.run_ranks(updates, tmp_path, config, CHUNK_ENTRIES, model=model)
    config = config.model_copy(update={"ranks": ranks, "zero_stage": stage})
    # Seven tokens a chunk: ranks have different numbers of them.
    chunked = fixtures.run_ranks(updates, tmp_path, config, 7 * 320, model=model)
    for a, b in zip(whole, chunked, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert np.abs(a[name] - b[name]).max() < 5e-6 * np.abs(a[name]).max()
