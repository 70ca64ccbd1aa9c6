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

from tests.runs import OVERRIDES, copy, environment, finished, free_port, reach, start
from tests.test_chaos import UNTIL, actor, same

RAY = str(Path(sys.executable).with_name("ray"))


class Nodes:
    """Nodes of one cluster, each with an address of the loopback network of its own."""

    def __init__(self, port: int) -> None:
        self.port, self.folder, self.processes = port, Path(f"/tmp/hero-nodes-{os.getpid()}"), []

    def add(self, cpus: int) -> subprocess.Popen:
        number = len(self.processes) + 1
        where = ["--head", f"--port={self.port}", "--include-dashboard=false", f"--temp-dir={self.folder}"]
        command = [
            RAY,
            "start",
            "--block",
            f"--num-cpus={cpus}",
            f"--node-ip-address=127.0.0.{number}",
            "--disable-usage-stats",
            "--object-store-memory=100000000",
            *([f"--address=127.0.0.1:{self.port}"] if self.processes else where),
        ]
        with open(f"{self.folder}.log", "a") as log:
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment()))
        deadline = time.monotonic() + 120
        while len(self.alive()) < number:
            assert time.monotonic() < deadline, Path(f"{self.folder}.log").read_text()
            time.sleep(0.5)
        return self.processes[-1]

    def alive(self) -> list[dict]:
        """The nodes that the head knows, asked for by a process of its own."""
        code = f"import ray, json; ray.init('127.0.0.1:{self.port}', logging_level='ERROR'); print(json.dumps(ray.nodes()))"
        asked = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment()
        )
        return (
            [node for node in json.loads(asked.stdout.splitlines()[-1]) if node["Alive"]]
            if not asked.returncode
            else []
        )

    def lose(self, node: subprocess.Popen) -> None:
        """SIGKILL for all of a node at once."""
        for process in [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        node.wait()

    def end(self) -> None:
        for node in reversed(self.processes):
            if node.poll() is None:
                self.lose(node)
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
def test_the_work_of_a_lost_node_goes_to_another(run, nodes, tmp_path):
    root = copy(run, tmp_path / "run")
    nodes.add(cpus=0)  # where the driver is
    workers = [nodes.add(cpus=2), nodes.add(cpus=2)]
    process = start(root, *OVERRIDES, *UNTIL, f"cluster.address=127.0.0.1:{nodes.port}")
    reach(process, root, "ppo", 3)
    nodes.lose(next(node for node in workers if houses(node, "learner-0")))
    struck = time.monotonic()
    print(f"\nloss of a node: the next step was done after {reach(process, root, 'ppo', 4) - struck:.1f} s")
    finished(process, root)
    lost = [
        name
        for line in (root / "failures.jsonl").read_text().splitlines()
        for name in json.loads(line)["lost"]
    ]
    assert "learner-0" in lost
    same(root, run)


def houses(node: subprocess.Popen, name: str) -> bool:
    """Whether an actor's process is one of this node's."""
    try:
        return actor(node, name).is_running()
    except AssertionError:
        return False
