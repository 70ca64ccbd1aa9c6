"""Actors and drivers that die or hang are replaced, and the run ends as an undisturbed one: bit for
bit, on real components."""

import hashlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from bench.soak import without_times
from common.errors import RunStoppedError
from common.run_paths import RunPaths
from common.stop_request import request_stop, withdraw_stop
from tests.runs import (
    ITERATIONS,
    OVERRIDES,
    copy_up_to_reward,
    jsonl,
    metrics,
    output_tail,
    start,
    wait_for_step,
    wait_until_finished,
)

UNTIL = ["--until", "ppo"]

pytestmark = pytest.mark.timeout(1200)


def actor_process(ancestor: psutil.Process | subprocess.Popen, name: str) -> psutil.Process:
    """The process of an actor: the descendant of a driver or node that has the actor's log open."""
    for child in psutil.Process(ancestor.pid).children(recursive=True):
        try:
            if any(file.path.endswith(f"/logs/{name}.log") for file in child.open_files()):
                return child
        except psutil.Error:
            continue
    raise AssertionError(f"no process of {name}")


def assert_identical(first: Path, second: Path) -> None:
    """Parameters, metrics except for times, and the record of what was learned from are equal to
    the last bit."""
    one, other = (load_file(root / "ppo" / "model" / "model.safetensors") for root in (first, second))
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].equal(other[name]), name
    assert RunPaths(first).batches.read_text() == RunPaths(second).batches.read_text()
    one_rows, other_rows = ([without_times(row) for row in metrics(root, "ppo")] for root in (first, second))
    assert one_rows == other_rows


def truncate_weight_files(root: Path) -> None:
    """Cuts the weight files that learners send to engines as soon as they appear, until an engine
    has met one."""
    folder = Path("/dev/shm") / f"zero2hero-{hashlib.sha256(str(root).encode()).hexdigest()[:12]}"
    failures = RunPaths(root).failures
    before = failures.read_text()
    ignored, deadline = set(folder.glob("*.safetensors")), time.monotonic() + 120
    while failures.read_text() == before:
        assert time.monotonic() < deadline, "no update failed"
        for path in set(folder.glob("*.safetensors")) - ignored:
            ignored.add(path)
            os.truncate(path, 1000)
            time.sleep(0.5)
        time.sleep(0.0005)


ONE_OF_EACH_KIND = [(1, "learner-1", signal.SIGKILL), (2, "rollout-0", signal.SIGSTOP)]
EVERY_FAULT = [
    (1, "rollout-0", signal.SIGKILL),
    (2, "scoring-0", signal.SIGKILL),
    (3, "learner-1", signal.SIGKILL),
    (4, "learner-0", signal.SIGSTOP),
    (5, "rollout-0", "truncated weights"),
]


def wait_for_failure(driver: subprocess.Popen, root: Path, number: int) -> None:
    """Waits until the run has noticed this many failures: another one meanwhile would count with it."""
    deadline = time.monotonic() + 180
    while len(jsonl(RunPaths(root).failures)) < number:
        assert driver.poll() is None, output_tail(root)
        assert time.monotonic() < deadline, f"failure {number} was not noticed"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("faults", "iterations"),
    [(ONE_OF_EACH_KIND, ITERATIONS), pytest.param(EVERY_FAULT, 40, marks=pytest.mark.slow)],
)
def test_killed_and_stopped_processes_change_nothing(run, tmp_path, faults, iterations):
    """At last the driver, whose latest checkpoint is damaged too."""
    undisturbed, options = run, [*OVERRIDES, f"ppo.iterations={iterations}", *UNTIL]
    if iterations != ITERATIONS:
        undisturbed = copy_up_to_reward(run, tmp_path / "undisturbed")
        wait_until_finished(start(undisturbed, *options), undisturbed)
    root, rng = copy_up_to_reward(run, tmp_path / "run"), random.Random(0)
    process = start(root, *options)
    last = 0
    for count, (step, name, fault) in enumerate(faults, 1):
        wait_for_step(process, root, "ppo", step)
        failed_at = time.monotonic()
        if isinstance(fault, signal.Signals):
            time.sleep(rng.uniform(0, metrics(root, "ppo")[-1]["time/iteration"]))
            actor_process(process, name).send_signal(fault)
        else:
            truncate_weight_files(root)
        # A fault may hit after the actor's part in a step, and is then met in the next one.
        wait_for_failure(process, root, count)
        last = metrics(root, "ppo")[-1]["step"] + 1
        seconds = wait_for_step(process, root, "ppo", last) - failed_at
        print(f"\n{getattr(fault, 'name', fault)} of {name}: the next step was done after {seconds:.1f} s")
    process.kill()
    process.wait()
    latest = max(path.parent for path in root.glob("ppo/checkpoints/*/manifest.json"))
    largest = max(latest.rglob("*.pt"), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    failed_at = time.monotonic()
    process = start(root, *options)
    seconds = wait_for_step(process, root, "ppo", min(last + 1, iterations)) - failed_at
    print(f"\nSIGKILL of the driver, its latest checkpoint truncated: the next step after {seconds:.1f} s")
    wait_until_finished(process, root)
    assert f"{latest} is corrupt" in Path(f"{root}.log").read_text()
    failures = jsonl(RunPaths(root).failures)
    assert len(failures) == len(faults)
    for (_, name, _), failure in zip(faults, failures, strict=True):
        assert name in failure["replaced"]
    assert_identical(root, undisturbed)


def kill_inside_sync(driver: subprocess.Popen, root: Path, name: str) -> None:
    """Kills an engine that weights are on their way to."""
    engine, learner = actor_process(driver, name), actor_process(driver, "learner-0")
    # To find them takes time, in which the run has gone on.
    wait_for_step(driver, root, "ppo", metrics(root, "ppo")[-1]["step"] + 1)

    def seconds() -> float:
        return sum(learner.cpu_times()[:2])

    # Responses are sampled first: only when the learners compute, the engine has done its part.
    idle, deadline = seconds(), time.monotonic() + 120
    while seconds() < idle + 0.05:
        assert time.monotonic() < deadline, "no learner began to learn"
        time.sleep(0.005)
    engine.suspend()
    # Stopped, so that the sync waits for it, and for nothing else once the learners are idle.
    busy, since = seconds(), time.monotonic()
    while time.monotonic() < since + 3:
        assert time.monotonic() < deadline, "the learners went on"
        if seconds() > busy + 0.1:
            busy, since = seconds(), time.monotonic()
        time.sleep(0.05)
    engine.kill()


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["object_store", "broadcast"])
def test_each_transport_ends_with_the_same_bits_when_processes_fail(run, tmp_path, transport):
    """Also inside a sync. The undisturbed run used files."""
    root, rng = copy_up_to_reward(run, tmp_path / "run"), random.Random(1)
    overrides = [f"sync.transport={transport}", "sync.bucket_mib=1", "cluster.heartbeat_timeout_s=15"]
    # Without versions: their export would be work of the learners between two iterations.
    process = start(root, *OVERRIDES, *overrides, "ppo.publish_every=100", *UNTIL)
    faults = [
        ("rollout-0", "SIGKILL"),
        ("learner-0", "SIGKILL"),
        ("rollout-0", "SIGSTOP"),
        ("rollout-0", "SIGKILL inside a sync"),
    ]
    for step, (name, fault) in enumerate(faults, start=1):
        wait_for_step(process, root, "ppo", step)
        if fault == "SIGKILL inside a sync":
            kill_inside_sync(process, root, name)
        else:
            time.sleep(rng.uniform(0, 0.3))
            actor_process(process, name).send_signal(getattr(signal, fault))
        failed_at = time.monotonic()
        wait_for_failure(process, root, step)
        seconds = wait_for_step(process, root, "ppo", metrics(root, "ppo")[-1]["step"] + 1) - failed_at
        print(f"\n{transport}: {fault} of {name}: the next step was done after {seconds:.1f} s")
    wait_until_finished(process, root)
    failures = jsonl(RunPaths(root).failures)
    assert len(failures) == len(faults)
    for (name, _), failure in zip(faults, failures, strict=True):
        assert name in failure["replaced"]
    assert "update_weights" in failures[-1]["error"]
    assert_identical(root, run)


def test_full_disk_stops_grpo_and_the_run_resumes_with_room(run, tmp_path):
    root = copy_up_to_reward(run, tmp_path / "run")
    disk = root / "ppo" / "checkpoints"
    disk.mkdir(parents=True)
    # Dynamic sampling too, since it asks for several batches in one iteration.
    overrides = [*OVERRIDES, "ppo.advantage=grpo", "ppo.dynamic_sampling=1", "ppo.correction=tis", *UNTIL]
    mount = ["mount", "-t", "tmpfs", "-o", "size=1g", "none", disk]
    mounted = not subprocess.run(mount, capture_output=True).returncode
    try:
        process = start(root, *overrides)
        if mounted:
            fill_and_free(disk, process, root)
            process = start(root, *overrides)
        wait_until_finished(process, root)
    finally:
        if mounted:
            subprocess.run(["umount", "-l", disk], check=True)
    rows = metrics(root, "ppo")
    assert [row["step"] for row in rows] == list(range(1, ITERATIONS + 1))
    for row in rows:
        assert "val/var_explained" not in row
        assert row["mismatch/weight"] == pytest.approx(1, abs=1e-4)
        assert 2 <= row["objective/responses"] <= 16
        assert row["val/first_ratio_error"] < 1e-5
    if not mounted:
        pytest.skip("the run was fine, but mounting a small disk takes rights that this user lacks")


def fill_and_free(disk: Path, process: subprocess.Popen, root: Path) -> None:
    """Leaves no room for another checkpoint, waits until the run has stopped and makes room again."""
    wait_for_step(process, root, "ppo", 3)
    latest = max(path.parent for path in disk.glob("*/manifest.json"))
    size = sum(path.stat().st_size for path in latest.rglob("*") if path.is_file())
    # Two are kept and a third is written before the oldest is removed. During that write the disk
    # already holds more than the new limit, so the remount is refused and tried again.
    smaller, deadline = ["mount", "-o", f"remount,size={5 * size // 2}", disk], time.monotonic() + 30
    while subprocess.run(smaller, capture_output=True).returncode:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    filled_at = time.monotonic()
    assert process.wait(timeout=120) == 4, output_tail(root)  # exit code of DiskFullError
    print(f"\na full disk: stopped after {time.monotonic() - filled_at:.1f} s")
    assert "the checkpoint could not be written" in output_tail(root)
    complete = {path.parent.name for path in disk.glob("*/manifest.json")}
    assert complete
    assert complete == {path.name for path in disk.iterdir()}  # the incomplete one was removed
    subprocess.run(["mount", "-o", "remount,size=1g", disk], check=True)


def test_stale_rollouts_use_each_prompt_once_when_an_engine_dies(run, tmp_path):
    root = copy_up_to_reward(run, tmp_path / "run")
    process = start(root, *OVERRIDES, *UNTIL, "ppo.staleness=2", "ppo.correction=decoupled")
    wait_for_step(process, root, "ppo", 3)
    actor_process(process, "rollout-0").kill()
    wait_until_finished(process, root)
    rows = metrics(root, "ppo")
    assert [row["step"] for row in rows] == list(range(1, ITERATIONS + 1))
    assert max(row["staleness/mean"] for row in rows) > 0
    assert max(row["staleness/max"] for row in rows) <= 2
    assert all(row["sync/mean_error"] < 1e-5 for row in rows)
    prompts = [prompt for batch in jsonl(RunPaths(root).batches) for prompt in batch["prompts"]]
    # Fewer than the 60 prompts there are: each at most once.
    assert len(prompts) == len(set(prompts)) == 8 * ITERATIONS


@pytest.mark.slow
def test_the_cord_stops_ppo_within_an_iteration_and_it_continues_from_its_checkpoint(run, tmp_path):
    root = copy_up_to_reward(run, tmp_path / "run")
    process = start(root, *OVERRIDES, *UNTIL)
    wait_for_step(process, root, "ppo", 2)
    request_stop(RunPaths(root), "labeler-1", "it insults people")
    asked_at = metrics(root, "ppo")[-1]["step"]
    assert process.wait(timeout=120) == RunStoppedError.exit_code
    assert metrics(root, "ppo")[-1]["step"] <= asked_at + 1 < ITERATIONS
    assert "stopped by labeler-1: it insults people" in output_tail(root)
    # Whoever starts it again meets the same request, and nothing is learned.
    assert start(root, *OVERRIDES, *UNTIL).wait(timeout=120) == RunStoppedError.exit_code
    assert metrics(root, "ppo")[-1]["step"] <= asked_at + 1
    withdraw_stop(RunPaths(root))
    wait_until_finished(start(root, *OVERRIDES, *UNTIL), root)
    assert_identical(run, root)
