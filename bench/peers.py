"""The same GRPO steps in TRL's GRPOTrainer and here, and PPO with a critic here, in one run.

    RAY_worker_niceness=0 python -m bench.peers RUN OUT [--rounds 3] [--steps 12] [--systems NAME …]

RUN is a quickstart run whose sft stage is done, or a run from a model and prompts of its own whose reward
stage is done, such as that of configs/smollm2.yaml. Every system starts from that model, in float32 on two
cores and without adapters, takes the same prompts in the same order, samples the same number of responses
to each, is rewarded by the quickstart's oracle or by the run's reward model, takes one optimizer step a
batch and has no KL penalty, which is TRL's default. The systems alternate, one process tree each, so that
other work on the machine hits all of them. TRL is installed into an environment of its own in OUT, on top of
this one, so that both use one torch and one transformers; TRL generates with transformers, since the vLLM
that it supports is older than the one here.

Prints for each system the median and range over all steps but the first two of each process:
seconds a step, samples/s, and that as a ratio to TRL; the peak memory of its processes (PSS), and
the mean reward of the last quarter of the steps.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.common import print_header, print_row, spread, start_parser
from cluster.config_loader import load_config
from cluster.context import Context
from cluster.quickstart.oracle import judge
from cluster.run.directory import RunDirectory
from cluster.run.memory import PeakMemory
from common.files import read_json, read_jsonl, to_json, write_jsonl
from learners.data.tokenizer_loading import load_tokenizer

TRL = "trl==1.16.0"
WARM_UP = 2
"""Steps at the start of each process that are not counted."""
PHASES = ("generation", "scoring", "learning", "sync", "probe")
TRL_SYSTEM = "TRL GRPO"
SYSTEMS = ("GRPO", "PPO with a critic")


@dataclass(frozen=True)
class Setting:
    """What all systems do alike."""

    model: str
    prompts: str
    """JSONL file."""
    reward_model: str | None
    """Folder; None: the quickstart's oracle."""
    per_step: int
    """Prompts of one step."""
    max_tokens: int
    """Of a response."""
    context: int
    lr: float
    ranks: int
    """Learner processes of this system; the threads of all are two."""
    responses: int = 4
    """To each prompt."""


def quickstart_setting(run: Path, prompts: Path) -> Setting:
    write_jsonl(prompts, read_jsonl(run / "data" / "prompts.jsonl"))
    return Setting(
        str(run / "sft" / "model"),
        str(prompts),
        None,
        per_step=64,
        max_tokens=32,
        context=256,
        lr=1e-4,
        ranks=2,
    )


def own_setting(run: Path, prompts: Path) -> Setting:
    """Of a run with a model and prompts of its own, as its config.yaml has them."""
    config = load_config(run / "config.yaml", [])
    model, room, context = str(config.model.path), config.ppo.max_response_tokens, config.model.context
    tokenizer = load_tokenizer(Path(model), config.model)
    rows, _ = Context(config, RunDirectory(config), None).prompts("prompts", tokenizer, room)  # type: ignore[arg-type]
    write_jsonl(prompts, [{"prompt": row["prompt"]} for row in rows])
    reward_model = str(run / "reward" / "model")
    return Setting(
        model, str(prompts), reward_model, per_step=8, max_tokens=room, context=context, lr=1e-5, ranks=1
    )


def reward(row: dict[str, Any], response: str, ended: bool) -> float:
    """The oracle's score; TRL does not tell its reward functions whether a response has ended."""
    return judge(row, response).score


def main() -> None:
    parser = start_parser(__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS, help="beside TRL")
    arguments = parser.parse_args()
    out: Path = arguments.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    run: Path = arguments.run.absolute()
    setting_of = quickstart_setting if (run / "sft" / "model").is_dir() else own_setting
    setting = setting_of(run, out / "prompts.jsonl")
    python = install_trl(out / "trl-env")
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in (TRL_SYSTEM, *arguments.systems)}
    for index in range(arguments.rounds):
        for name in results:
            folder = out / f"{name.replace(' ', '-')}-{index}"
            if name == TRL_SYSTEM:
                result = run_trl(python, setting, folder, arguments.steps)
            else:
                advantage = "gae" if "PPO" in name else "grpo"
                result = run_ours(setting, folder, arguments.steps, advantage)
            results[name].append(result)
            print(f"round {index + 1}, {name}: {spread(result['seconds'][WARM_UP:])} s a step", flush=True)
    print_table(results, setting.per_step * setting.responses)


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


def run_trl(python: Path, setting: Setting, folder: Path, steps: int) -> dict[str, Any]:
    result = folder.with_suffix(".json")
    # As a module: beside a script, bench/common.py would hide the package `common`.
    command = [str(python), "-m", "bench.peers_trl", to_json(asdict(setting)), str(steps), str(result)]
    memory = run_measured(command, folder.with_suffix(".log"))
    measured = read_json(result)
    rewards = [row["reward"] for row in measured["rows"]]
    lengths = [row["length"] for row in measured["rows"]]
    return {"seconds": measured["seconds"], "reward": rewards, "length": lengths, "gib": memory}


def run_ours(setting: Setting, folder: Path, steps: int, advantage: str) -> dict[str, Any]:
    constant = {"lr": setting.lr, "schedule": "constant", "warmup_steps": 0}
    ppo: dict[str, Any] = {
        "iterations": steps,
        "prompts": setting.per_step,
        "responses": setting.responses,
        "max_response_tokens": setting.max_tokens,
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
    source: dict[str, Any] = {"kind": "function", "path": "bench.peers:reward"}
    if setting.reward_model:
        source = {"kind": "model", "path": setting.reward_model}
    config = {
        "run_dir": str(folder),
        "stages": ["ppo"],
        "data": {"prompts": setting.prompts, "heldout": setting.prompts},
        "model": {"path": setting.model, "context": setting.context},
        "learners": {"ranks": setting.ranks, "threads": 2 // setting.ranks, "dtype": "float32"},
        "rollout": {"actors": 1, "threads": 2},
        "scoring": {"actors": 1, "threads": 2, "dtype": "float32"},
        "rewards": {"sources": [source]},
        "ppo": ppo,
        "evaluate": {"prompts": 16, "judge": None, "max_response_tokens": setting.max_tokens},
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


def print_table(results: dict[str, list[dict[str, Any]]], samples: int) -> None:
    """`samples` is the number of responses of a step."""
    seconds: dict[str, list[float]] = {}
    for name, runs in results.items():
        seconds[name] = [value for run in runs for value in run["seconds"][WARM_UP:]]
    baseline = statistics.median(seconds[TRL_SYSTEM])
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
                f"{samples / median:.3g}",
                f"{baseline / median:.2f}",
                f"{max(run['gib'] for run in runs):.1f}",
                f"{statistics.mean(lengths):.1f}",
                f"{statistics.mean(ends):.2f}",
            ]
        )
    for name in results:
        if name == TRL_SYSTEM:
            continue
        medians = []
        for phase in PHASES:
            values = [value for run in results[name] for value in run["phases"][phase][WARM_UP:]]
            medians.append(f"{phase} {statistics.median(values):.2f} s")
        print(f"{name}: {', '.join(medians)}")


if __name__ == "__main__":
    main()
