"""Two rounds with every real component, killed in the middle of PPO and while people label."""

import signal
import subprocess
import time

import numpy as np
import pytest

from common.files import read_json, read_jsonl
from common.run_paths import RunPaths
from tests.runs import HERO, environment, metrics

SETTINGS = [
    "stages=[pretrain,sft]",
    "quickstart.prompts=400",
    "sample.max_response_tokens=16",
    "rounds.prompts=60",
    "rounds.responses=4",
    "rounds.previous=2",
    "rounds.labelers=4",
    "rounds.overlap=0.5",
    "rounds.calibration=3",
    "rounds.select=fisher",
    "rounds.comparison_share=0.2",
    "rounds.gate.comparisons=40",
    "rounds.gate.flag_rise=0.2",
    "rounds.gate.anchor=10",
    "reward_model.validation_share=0.2",
    "ppo.iterations=3",
    "ppo.promote_every=",
]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def start(root):
    with open(f"{root}.log", "a") as log:
        command = [*HERO, "rounds", "configs/tiny.yaml", f"run_dir={root}", *SETTINGS]
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment())


def kill_when(process, has_come, root):
    deadline = time.monotonic() + 600
    while not has_come():
        output = root.with_name("run.log").read_text()[-3000:]
        assert process.poll() is None, output
        assert time.monotonic() < deadline, output
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_two_rounds_with_every_component_killed_in_between(tmp_path):
    root = tmp_path / "run"
    run = RunPaths(root)
    first, second = run.round(1), run.round(2)

    def state(paths):
        return (read_json(paths.state) or {}).get("state")

    kill_when(start(root), lambda: state(first) == "labeling", root)
    kill_when(start(root), lambda: any(row["step"] >= 1 for row in metrics(first.root, "ppo")), root)
    rankings = first.round_rankings.read_bytes()
    process = start(root)
    assert process.wait(timeout=900) == 0, root.with_name("run.log").read_text()[-3000:]
    assert first.round_rankings.read_bytes() == rankings
    assert state(first) in ("promoted", "held")
    assert state(second) in ("promoted", "held")
    # Every iteration of PPO once, whatever was killed.
    assert [row["step"] for row in metrics(first.root, "ppo") if "objective/kl" in row] == [1, 2, 3]
    # Reward model 2 learned from both rounds, and both models were measured on the held-out pairs of both.
    matrix = read_json(second.state)["matrix"]
    assert [row["name"] for row in matrix["rows"]] == ["reward-1", "reward-2"]
    assert matrix["columns"] == ["round 1", "round 2"]
    assert all(cell["pairs"] > 0 for row in matrix["rows"] for cell in row["cells"])
    rows = read_jsonl(second.round_rankings)
    assert {one["version"] for row in rows for one in row["policy"]} == {"round-1", "sft-0"}
    # The features that prompts were chosen by are those of reward model 1.
    features = np.load(second.sampled_features)
    assert features["features"].shape == (4 * len(read_jsonl(second.sampled)), 64)
    selection = read_json(second.state)["selection"]
    assert selection["gain"] > selection["gain_of_random_instead"]
    assert read_json(second.state)["selection_gain"]["labels"] > 0
    assert read_json(second.state)["gate"]["win_rate"]["n"] == 40
