"""What a process needs of its GPU, against published figures and sums by hand."""

import pytest

from cluster.config_loader import load_config
from cluster.gpu_memory import (
    CONTEXT_GIB,
    FRAGMENTS,
    LIVE_PARAMETERS,
    engine_gpu_memory,
    learner_gpu_memory,
    model_under_zero,
    scoring_gpu_memory,
)
from cluster.memory_estimate import GIB, training_task
from cluster.model_shape import policy_shape
from cluster.precision import resolve

# The layers of Qwen2.5-72B, with narrower feed-forward blocks: 63e9 parameters.
LARGE = (
    "model.layers=80",
    "model.width=8192",
    "model.heads=64",
    "model.kv_heads=8",
    "model.vocab_size=152064",
    "model.tie_embeddings=false",
)


def gpus(*overrides):
    dtypes = ("learners.dtype=bfloat16", "ppo.dtype=bfloat16", "cluster.device=cuda")
    return resolve(load_config("configs/tiny.yaml", [*dtypes, *overrides]))[0]


@pytest.mark.parametrize(("stage", "published"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_model_states_are_those_of_the_zero_paper(stage, published):
    # Rajbhandari et al. 2020, figure 1: 7.5e9 parameters on 64 GPUs, K = 12, in GB of 1e9 bytes.
    config = gpus(f"learners.zero_stage={stage}", "learners.ranks=64")
    memory = model_under_zero(config, 7.5e9, 7.5e9, "bfloat16")
    assert (memory.weights + memory.gradients + memory.optimizer) / 1e9 == pytest.approx(published, rel=0.02)


def test_offload_moves_state_to_the_host():
    config = gpus("learners.zero_stage=3", "learners.ranks=8", "learners.offload_optimizer=true")
    memory = model_under_zero(config, 8e9, 8e9, "bfloat16")
    assert (memory.weights, memory.gradients, memory.optimizer) == (2e9, 2e9, 0)
    assert memory.host == 8e9 * 12 / 8 + 8e9 * 4 / 8
    assert memory.gathered == LIVE_PARAMETERS * 2
    config = gpus("learners.zero_stage=3", "learners.ranks=8", "learners.offload_parameters=true")
    memory = model_under_zero(config, 8e9, 8e9, "bfloat16")
    assert (memory.weights, memory.host, memory.optimizer) == (0, 2e9, 12e9)


def test_a_learner_rank_has_policy_and_critic_and_one_working_set():
    config = gpus("learners.zero_stage=3", "learners.ranks=32", "model.gradient_checkpointing=true", *LARGE)
    task = training_task(config, "ppo")
    memory = learner_gpu_memory(config, task)
    count = sum(task.parameters)
    assert count == policy_shape(config).parameters + policy_shape(config).scalar_parameters
    assert memory.weights == pytest.approx(count * 2 / 32)
    assert memory.optimizer == pytest.approx(count * 12 / 32)
    assert memory.gathered == LIVE_PARAMETERS * 2
    held = CONTEXT_GIB * GIB + memory.weights + memory.gradients + memory.optimizer
    assert memory.peak == pytest.approx(FRAGMENTS * (held + 2e9 + 2e9 + memory.activations))
    assert memory.largest_use == "optimizer"
    # 16 bytes x 125e9 / 32 are 58 GiB, and a GPU of 80 GB has room for little more.
    assert 70 < memory.peak_gib < 85
    alone = learner_gpu_memory(config.model_copy(update={"stages": ["sft"]}), training_task(config, "sft"))
    assert alone.peak_gib < 50
    # Without checkpointing the activations of 80 layers stay.
    plain = gpus("learners.zero_stage=3", "learners.ranks=32", *LARGE)
    assert learner_gpu_memory(plain, task).activations > 5 * memory.activations


def test_an_engine_worker_holds_its_part_and_caches_in_the_rest():
    config = gpus("rollout.tensor_parallel=4", *LARGE)
    memory = engine_gpu_memory(config, 80e9)
    weights = policy_shape(config).parameters * 2 / 4
    assert memory.weights == weights
    held = CONTEXT_GIB * GIB + weights + memory.activations
    assert memory.kv_cache == pytest.approx(0.9 * 80e9 - held)
    assert engine_gpu_memory(config, 80e9, parts=1).kv_cache == 0
    assert engine_gpu_memory(config, 80e9, parts=8, cache_bytes=5e9).kv_cache == 5e9


def test_scoring_holds_reference_and_reward_model():
    config = gpus("scoring.tensor_parallel=8", *LARGE)
    whole, cut = scoring_gpu_memory(config, parts=1), scoring_gpu_memory(config)
    shape = policy_shape(config)
    assert whole.weights == (shape.parameters + shape.scalar_parameters) * 2
    assert cut.weights == (whole.weights - 4 * shape.embedding) / 8 + 4 * shape.embedding
    assert cut.gathered == 0
