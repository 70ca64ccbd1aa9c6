"""The same GRPO steps in TRL's GRPOTrainer and here, and PPO with a critic here, in one run.

    RAY_worker_niceness=0 python -m bench.peers runs/quickstart OUT [--rounds 3] [--steps 12]

Needs a run whose sft stage is done. Every system starts from that model, in float32 on two cores,
takes the same prompts in the same order, samples the same number of responses to each, is rewarded
by the quickstart's oracle, takes one optimizer step a batch and has no KL penalty, which is TRL's
default. The systems alternate, one process tree each, so that other work on the machine hits all
of them. TRL is installed into an environment of its own in OUT, on top of this one, so that both use
one torch and one transformers; TRL generates with transformers, since the vLLM that it supports is
older than the one here.

Prints for each system the median and range over all steps but the first two of each process:
seconds a step, samples/s, and that as a ratio to TRL; the peak memory of its processes (PSS), and
the mean reward of the last quarter of the steps.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from bench.common import print_header, print_row, spread, start_parser
from cluster.quickstart.oracle import judge
from cluster.run.memory import PeakMemory
from common.files import read_json, read_jsonl, write_jsonl

TRL = "trl==1.16.0"
PROMPTS, RESPONSES, LR = 64, 4, 1e-4
WARM_UP = 2
"""Steps at the start of each process that are not counted."""
PHASES = ("generation", "scoring", "learning", "sync", "probe")
SYSTEMS = ("TRL GRPO", "GRPO", "PPO with a critic")


def reward(row: dict[str, Any], response: str, ended: bool) -> float:
    """The oracle's score; TRL does not tell its reward functions whether a response has ended."""
    return judge(row, response).score


def main() -> None:
    parser = start_parser(__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    arguments = parser.parse_args()
    out: Path = arguments.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    model = arguments.run.absolute() / "sft" / "model"
    prompts = read_jsonl(arguments.run / "data" / "prompts.jsonl")
    write_jsonl(out / "prompts.jsonl", prompts)
    python = install_trl(out / "trl-env")
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in SYSTEMS}
    for index in range(arguments.rounds):
        for name in SYSTEMS:
            folder = out / f"{name.replace(' ', '-')}-{index}"
            if name == "TRL GRPO":
                result = run_trl(python, model, out, folder, arguments.steps)
            else:
                advantage = "gae" if "PPO" in name else "grpo"
                result = run_ours(model, out, folder, arguments.steps, advantage)
            results[name].append(result)
            print(f"round {index + 1}, {name}: {spread(result['seconds'][WARM_UP:])} s a step", flush=True)
    print_table(results)


def install_trl(folder: Path) -> Path:
    """An environment with TRL that sees the packages of this one; returns its Python."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        site = next((folder / "lib").glob("python*/site-packages"))
        ours = [path for path in sys.path if path.endswith("site-packages")]
        (site / "ours.pth").write_text("\n".join(ours) + "\n")
        quiet = ["--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([str(python), "-m", "pip", "install", *quiet, TRL], check=True)
    return python


def run_trl(python: Path, model: Path, out: Path, folder: Path, steps: int) -> dict[str, Any]:
    result = folder.with_suffix(".json")
    numbers = [str(steps), str(PROMPTS), str(RESPONSES), str(LR)]
    # As a module: beside a script, bench/common.py would hide the package `common`.
    command = [str(python), "-m", "bench.peers_trl", str(model), str(out / "prompts.jsonl"), *numbers]
    command.append(str(result))
    memory = run_measured(command, folder.with_suffix(".log"))
    measured = read_json(result)
    rewards = [row["reward"] for row in measured["rows"]]
    lengths = [row["length"] for row in measured["rows"]]
    return {"seconds": measured["seconds"], "reward": rewards, "length": lengths, "gib": memory}


def run_ours(model: Path, out: Path, folder: Path, steps: int, advantage: str) -> dict[str, Any]:
    constant = {"lr": LR, "schedule": "constant", "warmup_steps": 0}
    ppo: dict[str, Any] = {
        "iterations": steps,
        "prompts": PROMPTS,
        "responses": RESPONSES,
        "epochs": 1,
        "minibatches": 1,
        "advantage": advantage,
        "dtype": "float32",
        "kl_coef": 0.0,
        "missing_eos_penalty": 0.0,
        "optimizer": constant,
        "best_of": 1,
        # No step has other work than its own, as in TRL's settings.
        "evaluate_every": steps,
        "publish_every": steps,
        "checkpoint_every": steps,
    }
    if advantage == "gae":
        ppo["critic_optimizer"] = constant
    config = {
        "run_dir": str(folder),
        "stages": ["ppo"],
        "data": {"prompts": str(out / "prompts.jsonl"), "heldout": str(out / "prompts.jsonl")},
        "model": {"path": str(model), "context": 256},
        "learners": {"ranks": 2, "threads": 1, "dtype": "float32"},
        "rollout": {"actors": 1, "threads": 2},
        "scoring": {"actors": 1, "threads": 2, "dtype": "float32"},
        "rewards": {"sources": [{"kind": "function", "path": "bench.peers:reward"}]},
        "ppo": ppo,
        "evaluate": {"prompts": 16, "judge": None},
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "cluster.cli", "run", str(file)]
    memory = run_measured(command, folder.with_suffix(".log"))
    rows = [row for row in read_jsonl(folder / "metrics.jsonl") if "objective/scores" in row]
    return {
        "seconds": [row["time/iteration"] for row in rows],
        "reward": [row["objective/scores"] for row in rows],
        "length": [row["response/length"] for row in rows],
        "phases": {name: [row[f"time/{name}"] for row in rows] for name in PHASES},
        "gib": memory,
    }


def run_measured(command: list[str], log: Path) -> float:
    """Runs a command to its end; returns the peak memory of its processes and this one, GiB."""
    environment = {**os.environ, "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "2"}
    environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
    memory = PeakMemory()
    with open(log, "w", encoding="utf-8") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment).returncode
    if code:
        sys.exit(f"{' '.join(command)}: exit code {code}; see {log}")
    return memory.stop()


def print_table(results: dict[str, list[dict[str, Any]]]) -> None:
    samples = PROMPTS * RESPONSES
    seconds: dict[str, list[float]] = {}
    for name, runs in results.items():
        seconds[name] = [value for run in runs for value in run["seconds"][WARM_UP:]]
    baseline = statistics.median(seconds["TRL GRPO"])
    print_header(
        ["system", "s a step", "samples/s", "ratio to TRL", "peak GiB", "tokens", "reward at the end"]
    )
    for name, runs in results.items():
        median = statistics.median(seconds[name])
        ends = [value for run in runs for value in run["reward"][-max(1, len(run["reward"]) // 4) :]]
        lengths = [value for run in runs for value in run["length"]]
        print_row(
            [
                name,
                spread(seconds[name], ".2f"),
                f"{samples / median:.0f}",
                f"{baseline / median:.2f}",
                f"{max(run['gib'] for run in runs):.1f}",
                f"{statistics.mean(lengths):.1f}",
                f"{statistics.mean(ends):.2f}",
            ]
        )
    for name in SYSTEMS[1:]:
        medians = []
        for phase in PHASES:
            values = [value for run in results[name] for value in run["phases"][phase][WARM_UP:]]
            medians.append(f"{phase} {statistics.median(values):.2f} s")
        print(f"{name}: {', '.join(medians)}")


if __name__ == "__main__":
    main()
