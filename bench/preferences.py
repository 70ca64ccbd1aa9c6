"""PPO, GRPO, DPO and best of n from identical rankings: runs and a table.

    python -m bench.preferences OUT SEED [SEED …] [--config CONFIG] [--until METHOD] [--set key=value …]

For each seed OUT/SEED is a run of the stages of CONFIG up to the reward model, and then of best_of_n, dpo and
ppo, which start from one policy, one set of rankings and, but for DPO, one reward model. OUT/SEED-grpo shares
them and trains by GRPO, with as many sampled responses as PPO. Each run is evaluated at its end on the
held-out prompts of CONFIG, sampled at temperature 1. What is done is not done again, so an interrupted bench
goes on; then a table of all that is done is printed.

The columns: the judge's score and measures, the reward model's score, KL to the policy that all start from in
nats a response, length in tokens, the share of prompts where the judge prefers the method's response to that
policy's, and seconds of the stage, for the first that needs engines with their start. Over several seeds:
mean and standard deviation. CONFIG with another judge than the quickstart's: configs/smollm2.yaml, for one.
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
from cluster.stages.evaluate import BASE, win_rate
from common.files import read_json, read_jsonl
from common.run_paths import RunPaths
from learners.rl.config import PPOConfig

CONFIG = Path("configs/quickstart.yaml")
ALTERNATIVES = ("best_of_n", "dpo", "ppo")
"""In the order of the stages."""
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
# Without a critic its keys have no effect and are refused.
OF_THE_CRITIC = ("critic_optimizer", "value_clip", "lam", "gamma", "whiten_rewards")
GRPO_RESPONSES = 4
MEASURES = ("score", "factual", "rude", "coherent", "ended", "reward", "kl", "length", "preferred")
STARTS = ("sft", BASE)
METHODS = (*STARTS, *ALTERNATIVES, "grpo")


def train(config: Path, out: Path, seed: int, until: str, changes: Sequence[str]) -> None:
    """The runs of one seed, up to a method."""
    root = (out / str(seed)).absolute()
    common = [f"seed={seed}", *(OF_THE_QUICKSTART if config == CONFIG else []), *changes]
    first = [stage for stage in load_config(config, common).stages if stage in FIRST_STAGES]
    last = ALTERNATIVES.index(until) + 1 if until in ALTERNATIVES else len(ALTERNATIVES)
    stages = [*first, *ALTERNATIVES[:last], "evaluate"]
    run_stages(load_config(config, [*common, f"run_dir={root}", f"stages=[{','.join(stages)}]"]))
    if until != "grpo":
        return
    grpo = root.with_name(f"{root.name}-grpo")
    grpo.mkdir(parents=True, exist_ok=True)
    for stage in ("data", *first):
        if (root / stage).exists() and not (grpo / stage).exists():
            (grpo / stage).symlink_to(root / stage)
    with_grpo = [*common, *grpo_changes(load_config(config, common).ppo)]
    run_stages(load_config(config, [*with_grpo, f"run_dir={grpo}", "stages=[ppo,evaluate]"]))


def grpo_changes(ppo: PPOConfig) -> list[str]:
    """GRPO with as many responses an iteration as PPO has, more of them to each prompt."""
    prompts = ppo.prompts * ppo.responses // GRPO_RESPONSES
    cleared = [f"ppo.{key}=" for key in OF_THE_CRITIC]
    return ["ppo.advantage=grpo", f"ppo.prompts={prompts}", f"ppo.responses={GRPO_RESPONSES}", *cleared]


def results(out: Path, seed: int) -> dict[str, dict[str, Any]]:
    """Measures of each finished method of a seed, with the seconds of its stage."""
    found: dict[str, dict[str, Any]] = {}
    for folder, suffix in ((out / str(seed), ""), (out / f"{seed}-grpo", "grpo")):
        paths = RunPaths(folder)
        evaluation = read_json(paths.evaluation)
        if not evaluation:
            continue
        stages = evaluation["stages"]
        answers = [line["answers"] for line in read_jsonl(paths.answers)]
        start = next(name for name in STARTS if name in stages)
        for stage, decodings in stages.items():
            name = suffix if suffix and stage == "ppo" else stage
            if name not in METHODS or name in found:
                continue
            found[name] = dict(decodings["sampled"])
            if stage == start:
                continue
            compared = {key: [of_prompt[key] for of_prompt in answers] for key in (start, stage)}
            wins = win_rate(compared, "the judge", start, stage)
            found[name]["preferred"] = wins["rate"] if wins else math.nan
            found[name]["seconds"] = read_json(paths.stage(stage).done)["seconds"]
    return found


def print_table(out: Path, seeds: Sequence[int]) -> None:
    by_seed = [results(out, seed) for seed in seeds]
    measured = {name for found in by_seed for row in found.values() for name in row}
    measures = [name for name in (*MEASURES, "seconds") if name in measured]
    print_header(["method", "seeds", *measures])
    for method in METHODS:
        rows = [found[method] for found in by_seed if method in found]
        if rows:
            cells = [spread([row.get(name, math.nan) for row in rows]) for name in measures]
            print_row([method, len(rows), *cells])


def spread(values: Sequence[float]) -> str:
    if np.isnan(values).all():
        return ""
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
