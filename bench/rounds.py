"""What two rounds gain over one, and over the same number of labels at once, by the quickstart's oracle.

    hero rounds configs/rounds.yaml run_dir=RUN
    hero rounds configs/rounds.yaml run_dir=CONTROL rounds.count=1 rounds.prompts=2400
    python -m bench.rounds RUN CONTROL

CONTROL (may be left out) has the labels of both rounds on samples of the SFT policy; for the same SFT model
copy RUN/{config.yaml,layout.json,data,pretrain,sft} before. Every policy answers the 260 held-out prompts of
the quickstart four times at temperature 1; differences are paired by prompt, with 95% intervals over prompts.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bench.common import mean_interval, print_header, print_row, start_parser
from common.files import read_json, read_jsonl
from common.run_paths import RunPaths

SAMPLES = 4
COMPARED = (
    ("round-1", "base"),
    ("round-2", "round-1"),
    ("round-2", "control"),
    ("control", "round-1"),
)
MEASURES = ("score", "factual", "coherent", "rude")


def main() -> None:
    parser = start_parser(__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("control", type=Path, nargs="?")
    arguments = parser.parse_args()
    run = RunPaths(arguments.run.absolute())
    policies = {paths.root.name: paths.stage("ppo").model for paths in run.started_rounds()}
    policies = {f"round-{int(name)}": folder for name, folder in policies.items() if folder.is_dir()}
    if arguments.control:
        policies["control"] = RunPaths(arguments.control.absolute()).round(1).stage("ppo").model
    with tempfile.TemporaryDirectory() as folder:
        answers, rates = evaluate(run, policies, Path(folder))
    print_rates(answers, rates)
    print_differences(answers)
    print_accuracies(run)


def evaluate(run: RunPaths, policies: dict[str, Path], folder: Path) -> tuple[list[dict[str, Any]], Any]:
    """Rows of answers.jsonl, and the rates of the evaluate stage."""
    config = yaml.safe_load(run.config.read_text())
    # Each prompt four times; the seeds belong to the place in the file.
    heldout = [{"path": str(run.data("heldout"))}] * SAMPLES
    config |= {"stages": ["evaluate"], "run_dir": str(folder / "run")}
    config["model"] = {"path": str(run.stage("sft").model), "context": config["model"]["context"]}
    config["data"] = {"heldout": heldout}
    config["evaluate"] = {
        "judge": "cluster.quickstart.oracle:judge",
        "policies": [{"name": name, "path": str(path)} for name, path in policies.items()],
    }
    file = folder / "evaluate.yaml"
    file.write_text(yaml.safe_dump(config))
    subprocess.run([sys.executable, "-m", "cluster.cli", "run", str(file)], check=True, stdout=sys.stderr)
    done = RunPaths(folder / "run")
    return read_jsonl(done.answers), read_json(done.evaluation)["stages"]


def by_prompt(answers: list[dict[str, Any]], policy: str, measure: str) -> np.ndarray:
    """(P,): mean of a measure over the answers to each prompt; nan where it does not apply."""
    values = defaultdict(list)
    for row in answers:
        value = row["answers"][policy].get(measure)
        values[row["prompt"]].append(np.nan if value is None else float(value))
    return np.array([np.mean(one) for one in values.values()])


def print_rates(answers: list[dict[str, Any]], rates: Any) -> None:
    print_header(["policy", *MEASURES, "KL"])
    for policy in answers[0]["answers"]:
        means = [np.nanmean(by_prompt(answers, policy, measure)) for measure in MEASURES]
        kl = rates[policy]["sampled"].get("kl", float("nan"))
        print_row([policy, *[f"{mean:.3f}" for mean in means], f"{kl:.2f}"])


def print_differences(answers: list[dict[str, Any]]) -> None:
    there = answers[0]["answers"]
    for one, other in COMPARED:
        if one not in there or other not in there:
            continue
        difference = by_prompt(answers, one, "score") - by_prompt(answers, other, "score")
        wins = np.mean((difference > 0) + 0.5 * (difference == 0))
        print(f"score of {one} - {other}: {mean_interval(difference.tolist(), '+.2f')}, wins {wins:.1%}")


def print_accuracies(run: RunPaths) -> None:
    last = read_json(run.started_rounds()[-1].state)
    if not last.get("matrix"):
        return
    for row in last["matrix"]["rows"]:
        for column, cell in zip(last["matrix"]["columns"], row["cells"], strict=True):
            truth = f", truth {cell['truth']:.1%} of {cell['truth_pairs']}" if "truth" in cell else ""
            print(f"{row['name']} on held-out pairs of {column}: labelers {cell['value']:.1%}{truth}")


if __name__ == "__main__":
    main()
