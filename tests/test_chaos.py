"""Whatever dies or hangs is replaced, and the run ends as one that nobody disturbed: bit for bit, on real components."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

ITERATIONS = 7
OVERRIDES = ["learners.ranks=2", f"ppo.iterations={ITERATIONS}", "ppo.best_of=1", "ppo.kl_target=0.5", "ppo.kl_horizon=64",
             "ppo.ema=0.9", "cluster.silence_s=5"]  # fmt: skip

pytestmark = pytest.mark.timeout(1200)


def start(root: Path, *more: str) -> subprocess.Popen:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "WANDB_"))}
    command = [sys.executable, "-m", "cluster.cli", "run", "configs/tiny.yaml", f"run_dir={root}", *OVERRIDES, *more]
    with open(f"{root}.log", "a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=env)


def finished(process: subprocess.Popen, root: Path) -> Path:
    assert process.wait(timeout=600) == 0, Path(f"{root}.log").read_text()[-3000:]
    return root


def steps(root: Path) -> list[dict]:
    """The metrics of PPO so far; a line may be half-written."""
    text = (root / "metrics.jsonl").read_text()
    return [row for line in text[: text.rfind("\n") + 1].splitlines() if (row := json.loads(line))["stage"] == "ppo"]


def reach(process: subprocess.Popen, root: Path, step: int) -> float:
    """Waits until a step has been logged; returns when that was seen."""
    deadline = time.monotonic() + 200
    while not any(row["step"] >= step for row in steps(root)):
        assert process.poll() is None, Path(f"{root}.log").read_text()[-3000:]
        assert time.monotonic() < deadline, f"step {step}: not within 200 s"
        time.sleep(0.02)
    return time.monotonic()


def actor(process: subprocess.Popen, name: str) -> psutil.Process:
    """The process of an actor: the one that writes its log."""
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if any(file.path.endswith(f"/logs/{name}.log") for file in child.open_files()):
                return child
        except psutil.Error:
            continue
    raise AssertionError(f"no process of {name}")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that is done up to the reward model."""
    root = tmp_path_factory.mktemp("chaos") / "trained"
    return finished(start(root, "--until", "reward"), root)


def copy(trained: Path, name: str) -> Path:
    root = trained.with_name(name)
    shutil.copytree(trained, root, ignore=shutil.ignore_patterns("wandb", "lock"))
    return root


@pytest.fixture(scope="module")
def undisturbed(trained):
    root = copy(trained, "undisturbed")
    return finished(start(root, "--until", "ppo"), root)


def same(one: Path, other: Path) -> None:
    """Parameters, metrics but for times, and the log of what was learned from, all equal to the last bit."""
    first, second = (load_file(root / "ppo" / "model" / "model.safetensors") for root in (one, other))
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].equal(second[name]), name
    assert (one / "ppo" / "batches.jsonl").read_text() == (other / "ppo" / "batches.jsonl").read_text()

    def timeless(root):
        skipped = ("time", "perf/", "wait/")
        return [{k: v for k, v in row.items() if not k.startswith(skipped)} for row in steps(root)]

    assert timeless(one) == timeless(other)


def test_actors_that_die_or_hang_are_replaced_and_nothing_else_changes(trained, undisturbed):
    root, draw = copy(trained, "disturbed"), random.Random(0)
    process = start(root, "--until", "ppo")
    table = []
    for step, name, how in (
        (1, "rollout-0", signal.SIGKILL), (2, "scoring-0", signal.SIGKILL), (3, "learner-1", signal.SIGKILL),
        (4, "learner-0", signal.SIGSTOP), (5, "rollout-0", signal.SIGSTOP),
    ):  # fmt: skip
        reach(process, root, step)
        time.sleep(draw.uniform(0, 0.3))
        victim = actor(process, name)
        victim.send_signal(how)
        struck = time.monotonic()
        table.append((how.name, name, reach(process, root, step + 1) - struck))
    finished(process, root)
    for how, name, seconds in table:
        print(f"\n{how} of {name}: the next step was done after {seconds:.1f} s")
    faults = [json.loads(line) for line in (root / "faults.jsonl").read_text().splitlines()]
    assert [set(f["lost"]) & {name} for f, (_, name, _) in zip(faults, table, strict=True)] == [{name} for _, name, _ in table]
    same(root, undisturbed)


def test_a_driver_that_was_killed_goes_on_where_it_was(trained, undisturbed):
    root, draw = copy(trained, "killed"), random.Random(1)
    for step in (2, 4):
        process = start(root, "--until", "ppo")
        reach(process, root, step)
        time.sleep(draw.uniform(0, 1))
        process.kill()
        process.wait()
    finished(start(root, "--until", "ppo"), root)
    same(root, undisturbed)
