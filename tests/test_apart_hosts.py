"""Learners on one host and engines on another, no folder for weights between them: weights by each transport
that crosses the network; a network that fails for a time and for good; a host that joins.

One cluster with Ray's own settings: it gives a host up that has not answered for about 65 s.
"""

import shutil
import time
from pathlib import Path

import pytest

from common.run_paths import RunPaths
from tests.hosts import interrupt, two_hosts
from tests.runs import HERO, jsonl, metrics, wait_for_step
from tests.test_chaos import assert_identical
from tests.test_two_hosts import REASON, SETTINGS, hero, host_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
]

STEPS = 6


def layout(engines: str = "host2", scorers: str = "host1") -> str:
    hosts = f"learners: {{hosts: [host1]}}, rollout: {{hosts: [{engines}]}}, scoring: {{hosts: [{scorers}]}}"
    return f"cluster.layout={{{hosts}}}"


APART = [*SETTINGS, "learners.ranks=1", f"ppo.iterations={STEPS}", layout()]


@pytest.fixture(scope="module")
def hosts():
    with two_hosts("apart") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def undisturbed(hosts):
    """A run from pretraining to PPO whose weights go through Ray's object store."""
    root = hosts.shared / "undisturbed"
    process = hero(hosts, root, *APART, "sync.transport=object_store")
    assert process.wait(600) == 0, hosts.members[0].output()
    return root


def after_sft(undisturbed: Path, name: str) -> Path:
    """A run directory that is done up to SFT."""
    root = undisturbed.with_name(name)
    for stage in ("data", "pretrain", "sft"):
        shutil.copytree(undisturbed / stage, root / stage)
    return root


def replaced(root: Path) -> list[str]:
    rows = jsonl(RunPaths(root).failures)
    for row in rows:
        print(f"failure after {row['seconds']:.0f} s: {row['error'][:200]}; replaced {row['replaced']}")
    return [name for row in rows for name in row["replaced"]]


def check_learned(root: Path) -> None:
    """The engines held what the learners trained, and it is no longer the policy of SFT."""
    rows = metrics(root, "ppo")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert max(row["sync/mean_error"] for row in rows) < 1e-5
    assert rows[-1]["objective/kl"] != 0


def test_weights_go_through_the_object_store_to_another_host(undisturbed):
    assert host_of(undisturbed, "learner-0") == host_of(undisturbed, "scoring-0") == "10.77.0.1"
    assert host_of(undisturbed, "rollout-0") == "10.77.0.2"
    check_learned(undisturbed)
    assert replaced(undisturbed) == []


def test_weights_are_broadcast_to_another_host(hosts, undisturbed):
    root = after_sft(undisturbed, "broadcast")
    process = hero(hosts, root, *APART, "sync.transport=broadcast")
    assert process.wait(600) == 0, hosts.members[0].output()
    assert (host_of(root, "learner-0"), host_of(root, "rollout-0")) == ("10.77.0.1", "10.77.0.2")
    check_learned(root)
    assert_identical(root, undisturbed)


def test_engines_and_scoring_actors_need_no_run_directory(hosts, undisturbed):
    folder = hosts.folder / "of-host-1"
    folder.mkdir()
    # Host 2 has another folder there.
    assert hosts.members[1].run("mount", "-t", "tmpfs", "tmpfs", str(folder)) == 0
    root = folder / "run"
    root.mkdir()
    Path(f"{root}.log").symlink_to(hosts.members[0].log)
    process = hero(hosts, root, *APART, layout(scorers="host2"))
    assert process.wait(600) == 0, hosts.members[0].output()
    assert (RunPaths(root).logs / "learner-0.log").exists()
    assert not (RunPaths(root).logs / "rollout-0.log").exists()
    text = (RunPaths(root).logs / "ray.log").read_text()
    for name in ("rollout-0", "scoring-0"):
        assert f"{name}: host host2 (10.77.0.2)" in text
    check_learned(root)
    assert_identical(root, undisturbed)


@pytest.mark.parametrize("transport", ["object_store", "broadcast"])
def test_engines_that_are_cut_off_for_20_s_change_nothing(hosts, undisturbed, transport):
    root = after_sft(undisturbed, f"cut-{transport}")
    process = hero(hosts, root, *APART, f"sync.transport={transport}")
    wait_for_step(process, root, "ppo", 2)
    hosts.members[1].connect(False)
    time.sleep(20)
    hosts.members[1].connect(True)
    since = time.monotonic()
    try:
        print(f"\nnext step {wait_for_step(process, root, 'ppo', 4) - since:.0f} s after the return")
        assert process.wait(300) == 0, hosts.members[0].output()
    finally:
        interrupt(process)
    assert set(replaced(root)) <= {"rollout-0"}
    check_learned(root)
    assert_identical(root, undisturbed)


def test_engines_of_a_host_that_is_cut_off_for_good_go_to_one_that_joins(hosts, undisturbed):
    first, second = hosts.members
    root = after_sft(undisturbed, "lost")
    process = hero(hosts, root, *APART, layout("host2, host3"), "ppo.iterations=400")
    try:
        wait_for_step(process, root, "ppo", 2)
        second.connect(False)
        since = time.monotonic()
        # Host 2 has been given up, and host 3 is not there yet.
        while "waiting: rollout-0 needs" not in first.output():
            assert process.poll() is None, first.output()
            assert time.monotonic() < since + 300, first.output()
            time.sleep(1)
        print(f"\ngiven up after {time.monotonic() - since:.0f} s")
        before = len(metrics(root, "ppo"))
        joined = time.monotonic()
        hosts.add().start_ray(cpus=1)
        print(f"next step {wait_for_step(process, root, 'ppo', before + 1) - joined:.0f} s after the join")
        assert host_of(root, "rollout-0") == "10.77.0.3"
        assert set(replaced(root)) == {"rollout-0"}
        # One engine more, while the run goes on.
        assert first.run(*HERO, "scale", str(root), "rollout=2") == 0, first.output()
        asked = time.monotonic()
        while metrics(root, "ppo")[-1]["actors/rollout"] < 2:
            assert process.poll() is None, first.output()
            assert time.monotonic() < asked + 300, first.output()
            time.sleep(0.5)
        print(f"two engines {time.monotonic() - asked:.0f} s after the request")
        assert host_of(root, "rollout-1") == "10.77.0.3"
        assert max(row["sync/mean_error"] for row in metrics(root, "ppo")) < 1e-5
    finally:
        interrupt(process)
    assert process.wait(90) == 130, first.output()
