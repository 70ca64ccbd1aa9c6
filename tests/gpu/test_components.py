"""One component at a time on a GPU: what it frees, and that it computes what it does on a CPU."""

import numpy as np
import pytest
import torch

from bench.bringup import LIMITS_S, run_apart
from learners.config import LearnerConfig, ModelConfig
from learners.forward_checks import separates_packed
from learners.models import load_policy
from tests.gpu.needs import needs_gpus
from tests.learners import fixtures

pytestmark = needs_gpus(1)


def figures_of(step, workload):
    figures = run_apart(step, workload, LIMITS_S[step])
    assert "failed" not in figures, figures["failed"]
    return figures


def test_engine_frees_its_memory_asleep_and_samples_the_same_tokens(workload):
    figures = figures_of("sleep", workload)
    # It may take half of the GPU, nearly all of it for the cache.
    expected = 0.8 * torch.cuda.get_device_properties(0).total_memory / 2**30 * 0.5
    assert figures["level 1: freed, GiB"] > expected
    assert figures["level 2: freed, GiB"] > expected
    assert figures["same tokens after level 1"]


def test_learner_frees_its_memory_and_keeps_its_bits(workload):
    figures = figures_of("learner", workload)
    # Weights, float32 masters and two moments of Adam: 14 bytes a parameter of 2.
    assert figures["offload frees, GiB"] > 0.9 * workload.model_gib * 7
    assert figures["same bits after reload"]


def run_ppo(actor, folder):
    metrics, weights = fixtures.ppo(actor, folder, iterations=2)
    return str(next(iter(actor.task.engines.values())).device), metrics, weights


def test_learner_computes_on_a_gpu_what_it_does_on_a_cpu(tmp_path, monkeypatch):
    """PPO with a critic in float32, two iterations."""
    fixtures.make_files(tmp_path)
    device, metrics, weights = fixtures.run_ranks(run_ppo, tmp_path, LearnerConfig(ranks=1, gpus=1))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cpu, expected_metrics, expected = fixtures.run_ranks(run_ppo, tmp_path, LearnerConfig(ranks=1))
    assert (device.partition(":")[0], cpu.partition(":")[0]) == ("cuda", "cpu")
    for name, weight in weights.items():
        np.testing.assert_allclose(weight, expected[name], atol=1e-4, err_msg=name)
    for row, expected_row in zip(metrics, expected_metrics, strict=True):
        for name in ("loss/policy", "loss/value", "objective/kl"):
            if name in expected_row:
                assert row[name] == pytest.approx(expected_row[name], abs=1e-3), name


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flash_attention_2"])
def test_packed_sequences_do_not_see_each_other(attention, tmp_path):
    if attention == "flash_attention_2":
        pytest.importorskip("flash_attn", reason="the package flash-attn is not installed")
    fixtures.make_files(tmp_path)
    model = load_policy(tmp_path / "policy", ModelConfig(path=str(tmp_path / "policy"), attention=attention))
    dtype = torch.bfloat16 if attention == "flash_attention_2" else torch.float32
    assert separates_packed(model.to("cuda", dtype))
