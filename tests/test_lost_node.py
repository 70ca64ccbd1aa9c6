"""A run on a Ray cluster of several nodes, one of which is lost: raylet and workers, all at once."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from common.run_paths import RunPaths
from tests.runs import (
    OVERRIDES,
    copy_up_to_reward,
    environment,
    free_port,
    jsonl,
    start,
    wait_for_step,
    wait_until_finished,
)
from tests.test_chaos import UNTIL, actor_process, assert_identical

RAY = str(Path(sys.executable).with_name("ray"))


class Nodes:
    """Nodes of one cluster on this machine, each with its own address of the loopback network."""

    def __init__(self, port: int) -> None:
        self.port, self.folder, self.processes = port, Path(f"/tmp/hero-nodes-{os.getpid()}"), []

    def add(self, cpus: int) -> subprocess.Popen:
        number = len(self.processes) + 1
        role = [f"--address=127.0.0.1:{self.port}"]
        if number == 1:
            role = ["--head", f"--port={self.port}", "--include-dashboard=false", f"--temp-dir={self.folder}"]
        command = [
            RAY,
            "start",
            "--block",
            f"--num-cpus={cpus}",
            f"--node-ip-address=127.0.0.{number}",
            "--disable-usage-stats",
            "--object-store-memory=100000000",
            *role,
        ]
        env = environment() | {"RAY_AUTH_MODE": "disabled"}  # whatever token lies in the home directory
        with open(f"{self.folder}.log", "a") as log:
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=env))
        deadline = time.monotonic() + 120
        while len(self.alive()) < number:
            assert time.monotonic() < deadline, Path(f"{self.folder}.log").read_text()
            time.sleep(0.5)
        return self.processes[-1]

    def alive(self) -> list[dict]:
        """The nodes that the head lists as alive, queried by another process: this one must not
        join the cluster."""
        connect = f"ray.init('127.0.0.1:{self.port}', logging_level='ERROR')"
        code = f"import ray, json; {connect}; print(json.dumps(ray.nodes()))"
        query = [sys.executable, "-c", code]
        answer = subprocess.run(query, capture_output=True, text=True, env=environment())
        if answer.returncode:
            return []
        return [node for node in json.loads(answer.stdout.splitlines()[-1]) if node["Alive"]]

    def kill(self, node: subprocess.Popen) -> None:
        """SIGKILL for all processes of a node at once."""
        for process in [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        node.wait()

    def end(self) -> None:
        for node in reversed(self.processes):
            if node.poll() is None:
                self.kill(node)
        shutil.rmtree(self.folder, ignore_errors=True)
        Path(f"{self.folder}.log").unlink(missing_ok=True)


@pytest.fixture
def nodes():
    cluster = Nodes(free_port())
    try:
        yield cluster
    finally:
        cluster.end()


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_actors_of_a_lost_node_restart_on_another(run, nodes, tmp_path):
    root = copy_up_to_reward(run, tmp_path / "run")
    nodes.add(cpus=0)  # where the driver is
    workers = [nodes.add(cpus=2), nodes.add(cpus=2)]
    process = start(root, *OVERRIDES, *UNTIL, f"cluster.address=127.0.0.1:{nodes.port}")
    wait_for_step(process, root, "ppo", 3)
    nodes.kill(next(node for node in workers if runs_actor(node, "learner-0")))
    failed_at = time.monotonic()
    seconds = wait_for_step(process, root, "ppo", 4) - failed_at
    print(f"\nloss of a node: the next step was done after {seconds:.1f} s")
    wait_until_finished(process, root)
    replaced = [name for failure in jsonl(RunPaths(root).failures) for name in failure["replaced"]]
    assert "learner-0" in replaced
    assert_identical(root, run)


def runs_actor(node: subprocess.Popen, name: str) -> bool:
    """Whether an actor's process is on this node."""
    try:
        return actor_process(node, name).is_running()
    except AssertionError:
        return False
