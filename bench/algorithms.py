"""Learning algorithms against each other, from one SFT model and one reward model: runs, table, figures.

    python -m bench.algorithms runs/quickstart OUT [VARIANT …] [--set key=value …]

Needs a run whose reward stage is done. Every variant is a PPO stage in a run directory of its own,
OUT/VARIANT-SEED, with links to the other stages of the run. A variant that is done is not run
again; without a VARIANT nothing is run. Then a table of all that is done is printed, and
algorithms.svg, overoptimization.svg, ptx.svg and staleness.svg are drawn into OUT. `--set` changes
all variants.

All variants sample the same number of responses: with a group baseline, half the prompts and twice
the responses to each. The overlap variants use other fleets than the rest; give them to a call of
their own, on an idle machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from bench.common import print_header, print_row, start_parser
from bench.figures import save
from cluster.config_loader import load_config
from cluster.context import Context
from cluster.fleets.manager import FleetManager
from cluster.run.directory import RunDirectory
from cluster.stages import ppo
from common.files import read_json, read_jsonl
from common.run_paths import RunPaths

SHORT = [
    "ppo.iterations=15",
    "ppo.evaluate_every=3",
    "ppo.evaluate_prompts=400",
    "ppo.publish_every=10",
    "ppo.best_of=1",
]
# An override that ends in "=" resets a key: without a critic these have no effect and are refused.
NO_CRITIC = ["ppo.critic_optimizer=", "ppo.value_clip=", "ppo.lam="]
GROUPED = [*NO_CRITIC, "ppo.prompts=64", "ppo.responses=4", "ppo.gamma=", "ppo.whiten_rewards="]
LONG = ["ppo.iterations=45", "ppo.best_of=16", "ppo.optimizer.lr=5e-4", "ppo.kl_coef=0.001"]
ONE_CORE_EACH = [
    "learners.ranks=1",
    "learners.zero_stage=1",
    "rollout.threads=1",
    "scoring.threads=1",
]
SEEDS = (0, 1, 2)
STALENESS = (1, 4, 8)
STALE_OBJECTIVES = {
    "naive": "ppo.proximal=behaviour",
    "decoupled": "ppo.correction=decoupled",
    "truncated": "ppo.correction=tis",
}
# By name: (seeds, overrides).
VARIANTS: dict[str, tuple[tuple[int, ...], list[str]]] = {
    "ppo": (SEEDS, SHORT),
    "grpo": (SEEDS, [*SHORT, *GROUPED, "ppo.advantage=grpo"]),
    "rloo": (SEEDS, [*SHORT, *GROUPED, "ppo.advantage=rloo"]),
    "reinforce_pp": (SEEDS, [*SHORT, *NO_CRITIC, "ppo.advantage=reinforce_pp"]),
    "ptx": ((0,), [*SHORT, "ppo.ptx_coef=0.5"]),
    "overoptimization": ((0,), [*SHORT, *LONG]),
}
for objective, override in STALE_OBJECTIVES.items():
    for versions in STALENESS:
        overrides = [*SHORT, f"ppo.staleness={versions}", override]
        VARIANTS[f"{objective}_{versions}"] = ((0,), overrides)
VARIANTS["overlap_0"] = (SEEDS, [*SHORT, *ONE_CORE_EACH])
VARIANTS["overlap_1"] = (
    SEEDS,
    [*SHORT, *ONE_CORE_EACH, "ppo.staleness=1", "ppo.correction=decoupled"],
)
ADVANTAGES = ("ppo", "grpo", "rloo", "reinforce_pp")
PHASES = ("generation", "scoring", "learning", "iteration")
MEASURES = ("factual", "rude", "coherent", "score", "reward", "kl", "pretrain_loss")
SHARED_STAGES = ("data", "pretrain", "sft", "reward")


def run_variants(source: Path, out: Path, names: list[str], changes: list[str]) -> None:
    """Runs the PPO stage of all variants that are not done, with the same fleets."""
    runs = unfinished_runs(source, out, names, changes)
    if not runs:
        return
    fleets = FleetManager(runs[0].config, out)
    try:
        fleets.start()
        for run in runs:
            run.root.mkdir(parents=True, exist_ok=True)
            for stage in SHARED_STAGES:
                if not (run.root / stage).exists():
                    (run.root / stage).symlink_to(source / stage)
            print(run.root.name, flush=True)
            run.finish("ppo", 0.0, ppo.run(Context(run.config, run, fleets)))
    finally:
        fleets.close()


def unfinished_runs(source: Path, out: Path, names: list[str], changes: list[str]) -> list[RunDirectory]:
    """Seed by seed, so that an interrupted bench has all variants of its first seeds."""
    runs = []
    for seed in SEEDS:
        for name in names:
            seeds, overrides = VARIANTS[name]
            if seed not in seeds:
                continue
            root = out / f"{name}-{seed}"
            own = [f"seed={seed}", f"run_dir={root}", f"name={root.name}"]
            run = RunDirectory(load_config(RunPaths(source).config, [*overrides, *changes, *own]))
            if not run.done("ppo"):
                runs.append(run)
    return runs


def finished(out: Path, name: str) -> list[list[dict[str, Any]]]:
    """Rows of metrics for each finished seed."""
    by_seed = []
    for seed in VARIANTS[name][0]:
        paths = RunPaths(out / f"{name}-{seed}")
        if paths.stage("ppo").done.exists():
            by_seed.append(read_jsonl(paths.metrics))
    return by_seed


def evaluations(out: Path, name: str) -> list[list[dict[str, Any]]]:
    """Rows of metrics with an evaluation for each finished seed."""
    return [[row for row in rows if "eval/reward" in row] for rows in finished(out, name)]


def print_table(out: Path) -> None:
    """Last evaluation, and median seconds of the phases of an iteration: mean and standard
    deviation over the seeds."""
    print_header(["variant", "seeds", *MEASURES, *(f"{phase}, s" for phase in PHASES)])
    for name in VARIANTS:
        by_seed = finished(out, name)
        if not by_seed:
            continue
        evaluated = evaluations(out, name)
        cells = []
        for measure in MEASURES:
            last = [rows[-1].get(f"eval/{measure}", math.nan) for rows in evaluated]
            cells.append(mean_and_deviation(last))
        for phase in PHASES:
            # The first two iterations are not typical: engines and caches warm up.
            medians = [float(np.median([row[f"time/{phase}"] for row in rows[2:]])) for rows in by_seed]
            cells.append(mean_and_deviation(medians))
        print_row([name, len(by_seed), *cells])


def mean_and_deviation(values: Sequence[float]) -> str:
    deviation = np.std(values, ddof=int(len(values) > 1))
    return f"{np.mean(values):.3f} ± {deviation:.3f}"


def draw_curves(axis: Any, out: Path, names: Sequence[str], measure: str) -> None:
    """A measure over iterations: mean of the seeds, band from the lowest to the highest."""
    for name in names:
        by_seed = evaluations(out, name)
        if not by_seed:
            continue
        steps = [row["step"] for row in by_seed[0]]
        values = np.array([[row[measure] for row in rows] for rows in by_seed])
        label = f"{name} ({len(by_seed)} seeds)"
        (line,) = axis.plot(steps, values.mean(0), marker="o", markersize=3, label=label)
        band = {"color": line.get_color(), "alpha": 0.15, "linewidth": 0}
        axis.fill_between(steps, values.min(0), values.max(0), **band)
    axis.set_xlabel("iteration")
    axis.set_title(measure.removeprefix("eval/"))
    axis.grid(alpha=0.3)


def draw_figures(out: Path) -> None:
    """Every figure for which there is a finished run."""
    if any(evaluations(out, name) for name in ADVANTAGES):
        measures = ("eval/score", "eval/reward", "eval/kl")
        figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
        for axis, measure in zip(axes, measures, strict=True):
            draw_curves(axis, out, ADVANTAGES, measure)
        axes[0].legend(fontsize=8)
        save(figure, out / "algorithms.svg")
    stale = [name for name in VARIANTS if name.startswith(tuple(STALE_OBJECTIVES))]
    if any(evaluations(out, name) for name in stale):
        figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained", sharey=True)
        for axis, objective in zip(axes, STALE_OBJECTIVES, strict=True):
            names = [name for name in stale if name.startswith(objective)]
            draw_curves(axis, out, ["ppo", *names], "eval/score")
            axis.legend(fontsize=8)
        save(figure, out / "staleness.svg")
    if evaluations(out, "ptx"):
        figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
        for axis, measure in zip(axes, ("eval/pretrain_loss", "eval/score"), strict=True):
            draw_curves(axis, out, ("ppo", "ptx"), measure)
        axes[0].legend(fontsize=8)
        save(figure, out / "ptx.svg")
    for rows in evaluations(out, "overoptimization"):
        draw_overoptimization(out, rows)


def draw_overoptimization(out: Path, rows: list[dict[str, Any]]) -> None:
    """Reward and judge's score over the root of the KL, as in Gao et al. 2022 (arXiv:2210.10760)."""
    paths = RunPaths(out / "overoptimization-0")
    best_of_n = read_json(paths.best_of_n)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    titles = {"reward": "proxy: reward model", "score": "gold: judge"}
    for axis, (measure, title) in zip(axes, titles.items(), strict=True):
        distances = [math.sqrt(max(0, row["eval/kl"])) for row in rows]
        values = [row[f"eval/{measure}"] for row in rows]
        axis.plot(distances, values, "o-", markersize=3, label="PPO, KL coefficient 0.001")
        distances = [math.sqrt(row["kl"]) for row in best_of_n]
        values = [row[measure] for row in best_of_n]
        axis.plot(distances, values, "s--", markersize=3, label="best of n")
        axis.set_xlabel("√KL to the SFT policy, √nats")
        axis.set_title(title)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    save(figure, out / "overoptimization.svg")
    for alarm in read_jsonl(paths.alarms):
        print(f"alarm {alarm['alarm']}: {alarm['evidence']}")


def main() -> None:
    parser = start_parser(__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("variants", nargs="*", choices=[[], *VARIANTS])
    parser.add_argument("--set", dest="changes", nargs="*", default=[], metavar="key=value")
    options = parser.parse_args()
    out = options.out.absolute()
    run_variants(options.source.absolute(), out, options.variants, options.changes)
    print_table(out)
    draw_figures(out)


if __name__ == "__main__":
    main()
