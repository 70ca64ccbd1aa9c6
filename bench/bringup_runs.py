"""The steps of `bench.bringup` that are whole runs: a few GRPO iterations by `hero run`."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from typing import Any

import torch

from bench.bringup_workload import Skipped, Workload


def hero_run(workload: Workload, name: str, *overrides: str) -> dict[str, Any]:
    """A few GRPO iterations as a user starts them; medians of all but the first."""
    run_dir = workload.step_folder(name) / "run"
    common = [
        f"run_dir={run_dir}",
        "stages=[ppo]",
        f"cluster.device={workload.device}",
        f"model={{path: {workload.model}, context: {workload.context}, gradient_checkpointing: true}}",
        f"learners.micro_batch_tokens={workload.micro_batch_tokens}",
        "rewards.sources=[{kind: function, path: 'bench.memory:shorter'}]",
        f"ppo.dtype={workload.dtype}",
        "ppo.advantage=grpo",
        "ppo.kl_coef=0",
        f"ppo.iterations={workload.iterations}",
        f"ppo.prompts={workload.prompts}",
        f"ppo.responses={workload.responses}",
        f"ppo.max_response_tokens={workload.max_response_tokens}",
        "ppo.epochs=1",
        "ppo.minibatches=4",
        "ppo.best_of=1",
        "ppo.promote_every=0",
        "ppo.publish_every=100",
        "rollout.max_sequences=256",
        "ppo.evaluate_every=100",
        "ppo.evaluate_prompts=8",
        "evaluate={max_response_tokens: 16, judge: null}",
        "quickstart={documents: 1000, demonstrations: 200, prompts: 64, heldout: 16}",
    ]
    command = [sys.executable, "-m", "cluster.cli", "run", "configs/tiny.yaml", *common, *overrides]
    code = subprocess.run(command, check=False).returncode
    if code:
        raise RuntimeError(f"hero run ended with exit code {code}; what it said is above")
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["stage"] == "ppo" and "time/iteration" in row]
    return {
        figure: statistics.median(row[key] for row in rows[1:]) for figure, key in RUN_FIGURES.items()
    } | {"weights, GiB/s": workload.model_gib / statistics.median(row["time/sync"] for row in rows[1:])}


RUN_FIGURES = {
    "iteration, s": "time/iteration",
    "generation, s": "time/generation",
    "learning, s": "time/learning",
    "weight sync, s": "time/sync",
    "overhead, s": "time/overhead",
    "generation, tokens/s": "perf/generated_tokens_per_second",
    "learning, tokens/s": "perf/learned_tokens_per_second",
    "weight sync: mean error, nats": "sync/mean_error",
}
"""Metrics of a run by the name of the figure."""


def apart(workload: Workload) -> dict[str, Any]:
    shares = ["learners.ranks=1"]
    if workload.device == "cuda":
        shares += ["learners.gpus=0.5", "rollout.gpus=0.4", "rollout.gpu_memory_utilization=0.4"]
        shares += ["scoring.gpus=0.1"]
    return hero_run(workload, "apart", *shares)


def colocated(workload: Workload) -> dict[str, Any]:
    return hero_run(workload, "colocated", "learners.ranks=1", "cluster.layout=colocated")


def parallel(workload: Workload) -> dict[str, Any]:
    if workload.device != "cuda" or torch.cuda.device_count() < 2:
        raise Skipped("an engine over two GPUs needs two")
    split = ["rollout.tensor_parallel=2", "learners.ranks=2", "learners.zero_stage=3"]
    return hero_run(workload, "parallel", "cluster.layout=colocated", *split)
