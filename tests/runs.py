"""Runs of configs/tiny.yaml as processes of their own, as users start them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from common.network import free_ports
from common.run_paths import RunPaths

HERO = [sys.executable, "-m", "cluster.cli"]
ITERATIONS = 7
OVERRIDES = [
    f"ppo.iterations={ITERATIONS}",
    "ppo.kl_target=0.5",
    "ppo.kl_horizon=64",
    "ppo.best_of=4",
    "ppo.ema=0.9",
    "evaluate.samples=2",
    "cluster.heartbeat_timeout_s=8",
]
"""Of the run that the tests share."""


def environment() -> dict[str, str]:
    """Without the variables of this process's Ray, except the workers' priority, and W&B: W&B names its
    service process there, and sharing that of the tests would share its locks on runs."""
    variables = dict(os.environ)
    for name in os.environ:
        if name.startswith(("RAY_", "WANDB_")) and name != "RAY_worker_niceness":
            del variables[name]
    # Printed lines are not wrapped, so that tests know where each comes from.
    variables["COLUMNS"] = "400"
    return variables


def free_port() -> int:
    return free_ports(1)[0]


def start(root: Path, *overrides: str) -> subprocess.Popen:
    """`hero run` in the directory `root`; it prints into root.log beside it."""
    # A shell's background job ignores Ctrl-C, and so would what the tests start there.
    with open(f"{root}.log", "a") as log:
        return subprocess.Popen(
            [*HERO, "run", "configs/tiny.yaml", f"run_dir={root}", *overrides],
            stdout=log,
            stderr=log,
            env=environment(),
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def output_tail(root: Path) -> str:
    """The end of what a run printed."""
    return Path(f"{root}.log").read_text()[-3000:]


def wait_until_finished(process: subprocess.Popen, root: Path) -> Path:
    assert process.wait(timeout=600) == 0, output_tail(root)
    return root


def jsonl(path: Path) -> list[dict]:
    """Complete lines of a file that may be written to at the same time."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def metrics(root: Path, stage: str) -> list[dict]:
    """The metrics of a stage so far."""
    return [row for row in jsonl(RunPaths(root).metrics) if row["stage"] == stage]


def wait_for_step(process: subprocess.Popen, root: Path, stage: str, step: int) -> float:
    """Waits until a step has been logged; returns the time at which it was read."""
    deadline = time.monotonic() + 300
    while not any(row["step"] >= step for row in metrics(root, stage)):
        assert process.poll() is None, output_tail(root)
        assert time.monotonic() < deadline, f"{stage} {step}: not within 300 s"
        time.sleep(0.02)
    return time.monotonic()


def copy_up_to_reward(source: Path, root: Path) -> Path:
    """A run directory that is done up to the reward model."""
    for stage in ("data", "pretrain", "sft", "collect", "reward"):
        shutil.copytree(source / stage, root / stage)
    return root
