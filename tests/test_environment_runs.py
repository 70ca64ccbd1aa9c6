"""Whole runs with environments, on real components: they end bit for bit as an undisturbed run does, and an
environment of one turn changes nothing."""

import signal
import time

import psutil
import pytest
from safetensors.torch import load_file

from bench.soak import without_times
from common.run_paths import RunPaths
from tests.runs import OVERRIDES, copy_up_to_reward, jsonl, metrics, start, wait_for_step, wait_until_finished
from tests.test_chaos import UNTIL, actor_process, assert_identical

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

REPAIR = [
    "environment.name=cluster.recipes.repair:RepairDialogue",
    "environment.turns=2",
    # The policy of these tests seldom ends a turn sooner.
    "environment.tokens=100",
    "ppo.max_response_tokens=48",
    "environment.workers=1",
]


def environment_worker(rollout):
    """The process of an environment of this rollout actor."""
    for child in rollout.children(recursive=True):
        if "actors.environments.worker" in child.cmdline():
            return child
    raise AssertionError("no environment worker")


def test_killed_processes_change_no_bit_of_a_run_with_environments(run, tmp_path):
    undisturbed = copy_up_to_reward(run, tmp_path / "undisturbed")
    wait_until_finished(start(undisturbed, *OVERRIDES, *REPAIR, *UNTIL), undisturbed)
    rows = metrics(undisturbed, "ppo")
    assert all(row["episode/turns"] >= 1 for row in rows)
    assert any(row["episode/turns"] > 1 for row in rows)
    assert all(row["mismatch/max"] < 1e-3 for row in rows)

    root = copy_up_to_reward(run, tmp_path / "disturbed")
    process = start(root, *OVERRIDES, *REPAIR, *UNTIL)
    wait_for_step(process, root, "ppo", 1)
    worker = environment_worker(actor_process(process, "rollout-0"))
    worker.kill()
    psutil.wait_procs([worker], timeout=10)
    wait_for_step(process, root, "ppo", 2)
    assert jsonl(RunPaths(root).failures) == []  # no actor was replaced for it
    actor_process(process, "rollout-0").send_signal(signal.SIGKILL)
    wait_for_step(process, root, "ppo", 4)
    time.sleep(0.2)
    process.kill()
    process.wait()
    wait_until_finished(start(root, *OVERRIDES, *REPAIR, *UNTIL), root)
    assert_identical(root, undisturbed)


def test_an_environment_of_one_turn_is_a_run_without_one(run, tmp_path):
    """With the reward model as the source of reward: the same parameters and metrics, to the last bit."""
    root = copy_up_to_reward(run, tmp_path / "run")
    environment = ["environment.name=tests.actors.environments:OneTurn", "environment.turns=1"]
    rewards = ["environment.tokens=40", "rewards.sources=[{kind: model}]"]
    judge = ["evaluate.judge=cluster.quickstart.oracle:judge"]
    wait_until_finished(start(root, *OVERRIDES, *environment, *rewards, *judge, *UNTIL), root)
    one, other = (load_file(folder / "ppo" / "model" / "model.safetensors") for folder in (root, run))
    for name in one:
        assert one[name].equal(other[name]), name
    with_it, without = ([without_times(row) for row in metrics(folder, "ppo")] for folder in (root, run))
    for row, expected in zip(with_it, without, strict=True):
        assert {name: row[name] for name in expected} == expected
