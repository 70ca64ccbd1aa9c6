"""Whole runs on GPUs, started as a user starts them: a few GRPO iterations of a model of 0.5B parameters."""

import pytest

from bench.bringup_runs import hero_run
from bench.bringup_workload import Workload
from tests.gpu.needs import needs_gpus

pytestmark = needs_gpus(1)
two_gpus = pytest.mark.skipif(needs_gpus(2)[-1].args[0], reason=needs_gpus(2)[-1].kwargs["reason"])


@pytest.fixture
def small(workload, tmp_path):
    """The same model, with files of the test's own."""
    (tmp_path / "model").symlink_to(workload.model)
    return Workload(device="cuda", tiny=False, folder=tmp_path)


def check(figures):
    """The engines hold the learner's weights: two kinds of kernels differ by rounding in bfloat16 alone."""
    assert figures["weight sync: mean error, nats"] < 0.05


def test_apart_on_shares_of_one_gpu_by_files(small):
    shares = [
        "learners.gpus=0.5",
        "rollout.gpus=0.4",
        "rollout.gpu_memory_utilization=0.4",
        "scoring.gpus=0.1",
    ]
    check(hero_run(small, "apart", "learners.ranks=1", "sync.transport=file", *shares))


@pytest.mark.parametrize("level", [1, 2])
def test_colocated_in_turns_by_ipc(small, level):
    """Memory that one phase left in use would end the next: an engine may take nine tenths of the GPU."""
    turns = ["cluster.layout=colocated", "learners.ranks=1", f"rollout.sleep_level={level}"]
    check(
        hero_run(small, f"level-{level}", *turns, "sync.transport=ipc", "rollout.gpu_memory_utilization=0.9")
    )


@two_gpus
def test_apart_on_two_gpus_by_broadcast(small):
    own = ["learners.ranks=1", "learners.gpus=0.9", "scoring.gpus=0.1", "rollout.gpus=1"]
    check(hero_run(small, "broadcast", *own, "sync.transport=broadcast"))


@two_gpus
def test_colocated_engine_over_two_gpus(small):
    split = ["rollout.tensor_parallel=2", "learners.ranks=2", "learners.zero_stage=3"]
    check(hero_run(small, "parallel", "cluster.layout=colocated", *split))
