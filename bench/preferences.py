"""PPO, GRPO, DPO and best of n from identical rankings: runs and a table.

    python -m bench.preferences OUT SEED [SEED …] [--config CONFIG] [--until METHOD] [--set key=value …]

For each seed OUT/SEED is a run of all stages, in which best_of_n, dpo and ppo start from one SFT policy, one
set of rankings and, but for DPO, one reward model. OUT/SEED-grpo shares them and trains by GRPO, with as many
sampled responses as PPO. Each run is evaluated at its end on all held-out prompts, sampled at temperature 1.
What is done is not done again, so an interrupted bench goes on; then a table of all that is done is printed.

The columns: the oracle's score and measures, the reward model's score, KL to the SFT policy in nats a
response, length in tokens, and seconds of the stage, for the first that needs engines with their start. Over
several seeds: mean and standard deviation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.common import print_header, print_row, start_parser
from cluster.config_loader import load_config
from cluster.pipeline import run_stages
from common.files import read_json
from common.run_paths import RunPaths

CONFIG = Path("configs/quickstart.yaml")
ALTERNATIVES = ("best_of_n", "dpo", "ppo")
"""In the order of the stages."""
SHARED = ("data", "pretrain", "sft", "collect", "reward")
FIRST_STAGES = ("pretrain", "sft", "collect", "reward")
OF_THE_QUICKSTART = [
    "best_of_n.prompts=2000",
    "best_of_n.responses=8",
    "best_of_n.batch_size=32",
    "best_of_n.optimizer={lr: 3.0e-4}",
    "dpo.beta=0.1",
    "dpo.batch_size=32",
    "dpo.optimizer={lr: 1.0e-4}",
]
# Half the prompts and twice the responses to each; without a critic its keys have no effect and are refused.
GRPO = [
    "ppo.advantage=grpo",
    "ppo.prompts=64",
    "ppo.responses=4",
    *("ppo.critic_optimizer=", "ppo.value_clip=", "ppo.lam=", "ppo.gamma=", "ppo.whiten_rewards="),
]
MEASURES = ("score", "factual", "rude", "coherent", "reward", "kl", "length")
METHODS = ("sft", *ALTERNATIVES, "grpo")


def train(config: Path, out: Path, seed: int, until: str, changes: Sequence[str]) -> None:
    """The runs of one seed, up to a method."""
    root = (out / str(seed)).absolute()
    common = [f"seed={seed}", *OF_THE_QUICKSTART, *changes]
    last = ALTERNATIVES.index(until) + 1 if until in ALTERNATIVES else len(ALTERNATIVES)
    stages = [*FIRST_STAGES, *ALTERNATIVES[:last], "evaluate"]
    run_stages(load_config(config, [*common, f"run_dir={root}", f"stages=[{','.join(stages)}]"]))
    if until != "grpo":
        return
    grpo = root.with_name(f"{root.name}-grpo")
    grpo.mkdir(parents=True, exist_ok=True)
    for stage in SHARED:
        if not (grpo / stage).exists():
            (grpo / stage).symlink_to(root / stage)
    run_stages(load_config(config, [*common, *GRPO, f"run_dir={grpo}", "stages=[ppo,evaluate]"]))


def results(out: Path, seed: int) -> dict[str, dict[str, Any]]:
    """Measures of each finished method of a seed, with the seconds of its stage."""
    found: dict[str, dict[str, Any]] = {}
    for folder, suffix in ((out / str(seed), ""), (out / f"{seed}-grpo", "grpo")):
        paths = RunPaths(folder)
        evaluation = read_json(paths.evaluation)
        if not evaluation:
            continue
        for stage, decodings in evaluation["stages"].items():
            name = suffix if suffix and stage == "ppo" else stage
            if name not in METHODS or name in found:
                continue
            done = read_json(paths.stage(stage).done)
            found[name] = {**decodings["sampled"], "seconds": done["seconds"]}
    return found


def print_table(out: Path, seeds: Sequence[int]) -> None:
    by_seed = [results(out, seed) for seed in seeds]
    print_header(["method", "seeds", *MEASURES, "stage, s"])
    for method in METHODS:
        rows = [found[method] for found in by_seed if method in found]
        if rows:
            cells = [spread([row.get(name, math.nan) for row in rows]) for name in (*MEASURES, "seconds")]
            print_row([method, len(rows), *cells])


def spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


def main() -> None:
    parser = start_parser(__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("seeds", type=int, nargs="+")
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--until", choices=(*ALTERNATIVES, "grpo"), default="grpo")
    parser.add_argument("--set", dest="changes", nargs="*", default=[], metavar="key=value")
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        train(arguments.config, arguments.out, seed, arguments.until, arguments.changes)
    print_table(arguments.out, arguments.seeds)


if __name__ == "__main__":
    main()
