"""Runs over hosts that share a network and one folder, and nothing else (`tests.hosts`)."""

import re
import time
from pathlib import Path

import pytest

from common.run_paths import RunPaths
from tests.hosts import Hosts, interrupt, reason_to_skip, two_hosts
from tests.runs import HERO, metrics, wait_for_step
from tests.test_chaos import assert_identical

REASON = reason_to_skip()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

SETTINGS = [
    "stages=[pretrain, sft, ppo]",
    "quickstart.documents=600",
    "quickstart.demonstrations=100",
    "pretrain.steps=6",
    "sft.epochs=1",
    "ppo.iterations=2",
    "ppo.evaluate_every=9",
    "ppo.publish_every=9",
    "rewards.sources=[{kind: function, path: 'tests.test_two_hosts:short'}]",
    "learners.threads=1",
    "learners.zero_stage=3",
    "rollout.threads=1",
    "scoring.threads=1",
    "cluster.call_timeout_s=300",
]


def short(row, response, ended):
    """The reward of these runs."""
    return float(ended) - len(response) / 100


@pytest.fixture(scope="module")
def hosts():
    with two_hosts("shared") as cluster:
        yield cluster


def hero(hosts: Hosts, root: Path, *overrides: str):
    """Starts `hero run` on the first host."""
    if root.is_relative_to(hosts.shared):
        # For `tests.runs.wait_for_step`.
        Path(f"{root}.log").symlink_to(hosts.members[0].log)
    command = [*HERO, "run", "configs/tiny.yaml", f"run_dir={root}", f"cluster.address={hosts.head}"]
    return hosts.members[0].start(*command, *overrides)


def host_of(root: Path, actor: str) -> str:
    """The address of the host that an actor was started on last."""
    log = (RunPaths(root).logs / f"{actor}.log").read_text()
    return re.findall(rf"^{actor}: host \S+ \((\S+)\)", log, re.MULTILINE)[-1]


@pytest.mark.timeout(600)
def test_learners_of_two_hosts_train_and_engines_follow(hosts):
    root = hosts.shared / "run"
    weights = f"learners.weights_dir={hosts.shared / 'weights'}"
    process = hero(hosts, root, *SETTINGS, weights)
    try:
        assert process.wait(500) == 0, hosts.members[0].output()
    finally:
        interrupt(process)
    assert {host_of(root, "learner-0"), host_of(root, "learner-1")} == {"10.77.0.1", "10.77.0.2"}
    rows = metrics(root, "ppo")
    assert [row["step"] for row in rows] == [1, 2]
    # The engines hold what the two hosts have trained, and it is no longer the policy of SFT.
    assert max(row["sync/mean_error"] for row in rows) < 1e-5
    assert rows[-1]["objective/kl"] != 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_learner_that_is_cut_off_for_20_s_changes_nothing(hosts):
    roots = [hosts.shared / name for name in ("undisturbed", "cut")]
    weights = f"learners.weights_dir={hosts.shared / 'weights'}"
    for root in roots:
        process = hero(hosts, root, *SETTINGS, weights, "ppo.iterations=6")
        try:
            if root.name == "cut":
                wait_for_step(process, root, "ppo", 2)
                hosts.members[1].connect(False)
                time.sleep(20)
                hosts.members[1].connect(True)
                since = time.monotonic()
                print(f"\nnext step {wait_for_step(process, root, 'ppo', 4) - since:.0f} s after the return")
            assert process.wait(500) == 0, hosts.members[0].output()
        finally:
            interrupt(process)
    assert [row["step"] for row in metrics(roots[1], "ppo")] == list(range(1, 7))
    assert_identical(*roots)


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_what_a_second_host_lacks_is_said_before_any_stage(hosts):
    first, second = hosts.members
    process = hero(hosts, Path("/tmp/run"), *SETTINGS)
    assert process.wait(300) == 2
    assert (
        "the run directory /tmp/run is not the same on host host2 (10.77.0.2): there is no" in first.output()
    )
    # What an earlier start has left there is older than the session.
    assert second.run("sh", "-c", 'mkdir /tmp/run && echo \'{"id": "old"}\' > /tmp/run/session.json') == 0
    process = hero(hosts, Path("/tmp/run"), *SETTINGS)
    assert process.wait(300) == 2
    assert "not the same on host host2 (10.77.0.2): another copy is at that path" in first.output()
    # The cluster was started with the token of each host's home directory.
    command = [*HERO, "run", "configs/tiny.yaml", "run_dir=/tmp/other", f"cluster.address={hosts.head}"]
    assert first.run(*command, HOME="/tmp", timeout=300) == 2
    assert "it asks for a token and there is no token here: copy ~/.ray/auth_token" in first.output()
