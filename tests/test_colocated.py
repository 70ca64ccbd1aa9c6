"""Fleets that take turns on the same GPUs learn what those with GPUs of their own learn: bit for bit, with a
killed engine too. Without a GPU the same calls are made in the same order, and engines that are asleep and
learners whose states are away refuse to work."""

from pathlib import Path

import pytest

from common.run_paths import RunPaths
from tests.runs import OVERRIDES, copy_up_to_reward, jsonl, start, wait_for_step, wait_until_finished
from tests.test_chaos import UNTIL, actor_process, assert_identical

# Each is a PPO stage of about a minute after the run that the tests of failures share.
pytestmark = [pytest.mark.timeout(1200), pytest.mark.slow]

COLOCATED = ["cluster.layout=colocated", "rollout.sleep_level=2"]


def test_colocated_equals_apart_to_the_last_bit(run: Path, tmp_path: Path):
    root = copy_up_to_reward(run, tmp_path / "run")
    wait_until_finished(start(root, *OVERRIDES, *UNTIL, *COLOCATED), root)
    assert_identical(root, run)


def test_killed_engine_is_replaced_in_turn_and_changes_nothing(run: Path, tmp_path: Path):
    root = copy_up_to_reward(run, tmp_path / "run")
    process = start(root, *OVERRIDES, *UNTIL, *COLOCATED)
    wait_for_step(process, root, "ppo", 3)
    actor_process(process, "rollout-0").kill()
    wait_until_finished(process, root)
    assert [row["replaced"] for row in jsonl(RunPaths(root).failures)] == [["rollout-0"]]
    assert_identical(root, run)
