"""Whatever dies or hangs is replaced, and the run ends as one that nobody disturbed: bit for bit, on real components."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from tests.runs import copy, finished, reach, rows, start

ITERATIONS = 7
OVERRIDES = [f"ppo.iterations={ITERATIONS}", "ppo.best_of=1", "ppo.kl_target=0.5", "ppo.kl_horizon=64", "ppo.ema=0.9",
             "cluster.silence_s=8", "--until", "ppo"]  # fmt: skip

pytestmark = pytest.mark.timeout(1200)


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
def undisturbed(run, tmp_path_factory):
    root = copy(run, tmp_path_factory.mktemp("chaos") / "undisturbed")
    return finished(start(root, *OVERRIDES), root)


def same(one: Path, other: Path) -> None:
    """Parameters, metrics but for times, and the log of what was learned from, all equal to the last bit."""
    first, second = (load_file(root / "ppo" / "model" / "model.safetensors") for root in (one, other))
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].equal(second[name]), name
    assert (one / "ppo" / "batches.jsonl").read_text() == (other / "ppo" / "batches.jsonl").read_text()

    def timeless(root):
        skipped = ("time", "perf/", "wait/")
        return [{k: v for k, v in row.items() if not k.startswith(skipped)} for row in rows(root / "metrics.jsonl", "ppo")]

    assert timeless(one) == timeless(other)


def test_whoever_dies_or_hangs_is_replaced_and_nothing_else_changes(run, undisturbed):
    root, draw = copy(run, undisturbed.with_name("disturbed")), random.Random(0)
    process = start(root, *OVERRIDES)
    table = []
    for step, name, how in (
        (1, "rollout-0", signal.SIGKILL), (2, "scoring-0", signal.SIGKILL), (3, "learner-1", signal.SIGKILL),
        (4, "learner-0", signal.SIGSTOP),
    ):  # fmt: skip
        reach(process, root, "ppo", step)
        time.sleep(draw.uniform(0, 0.3))
        actor(process, name).send_signal(how)
        struck = time.monotonic()
        table.append((how.name, name, reach(process, root, "ppo", step + 1) - struck))
    time.sleep(draw.uniform(0, 0.5))
    process.kill()
    process.wait()
    newest = max(p.parent for p in root.glob("ppo/checkpoints/*/whole.json"))
    largest = max(newest.rglob("*.pt"), key=lambda p: p.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    struck = time.monotonic()
    process = start(root, *OVERRIDES)
    table.append(("SIGKILL", "the driver, its newest checkpoint cut, `hero run` again", reach(process, root, "ppo", 6) - struck))
    finished(process, root)
    assert f"{newest} is not whole" in Path(f"{root}.log").read_text()
    for how, name, seconds in table:
        print(f"\n{how} of {name}: the next step was done after {seconds:.1f} s")
    faults = [json.loads(line) for line in (root / "faults.jsonl").read_text().splitlines()]
    assert [name in fault["lost"] for fault, (_, name, _) in zip(faults, table, strict=False)] == [True] * 4
    same(root, undisturbed)


def test_rollouts_that_run_ahead_lose_and_double_nothing_when_one_dies(run, undisturbed):
    root = copy(run, undisturbed.with_name("ahead"))
    process = start(root, *OVERRIDES, "ppo.staleness=2", "ppo.correction=decoupled")
    reach(process, root, "ppo", 3)
    actor(process, "rollout-0").kill()
    finished(process, root)
    found = rows(root / "metrics.jsonl", "ppo")
    assert [row["step"] for row in found] == list(range(1, ITERATIONS + 1))
    assert max(row["staleness/mean"] for row in found) > 0
    assert max(row["staleness/max"] for row in found) <= 2
    assert all(row["sync/mean_error"] < 1e-5 for row in found)
    asked = [json.loads(line)["prompts"] for line in (root / "ppo" / "batches.jsonl").read_text().splitlines()]
    asked = [prompt for batch in asked for prompt in batch]
    assert len(asked) == len(set(asked)) == 8 * ITERATIONS  # fewer than the 60 prompts there are: each at most once
