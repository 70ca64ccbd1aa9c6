"""Learning algorithms against each other from one SFT model and one reward model: runs, table and figures.

    python -m bench.algorithms runs/quickstart OUT [VARIANT …] [--set key=value …]

AdvantageSpec a run whose reward stage is done. Every variant is a PPO stage of its own in OUT/VARIANT-SEED, beside links to
the run's other stages; a variant that is done is not run again, and without a VARIANT nothing is run. Then it prints
a table of all that is done and draws algorithms.svg, overoptimization.svg, ptx.svg and staleness.svg into OUT. `--set`
changes all variants. Responses sampled are the same for all: with a group baseline, half the prompts and twice the
responses. The overlap variants have other fleets than the rest and are run in a call of their own, on an idle machine.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from cluster.config import load_config
from cluster.context import Context
from cluster.fleets.manager import FleetManager
from cluster.run.directory import Run
from cluster.stages import ppo
from common.files import read_json, read_jsonl

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "zero2hero"  # the same figure from the same numbers
import matplotlib.pyplot as plt  # noqa: E402

SHORT = [
    "ppo.iterations=15",
    "ppo.evaluate_every=3",
    "ppo.evaluate_prompts=400",
    "ppo.publish_every=10",
    "ppo.best_of=1",
]
NO_CRITIC = [
    "ppo.critic_optimizer=",
    "ppo.value_clip=",
    "ppo.lam=",
]  # nothing after the "=": back to the default
GROUPED = [*NO_CRITIC, "ppo.prompts=64", "ppo.responses=4", "ppo.gamma=", "ppo.whiten_rewards="]
LONG = ["ppo.iterations=45", "ppo.best_of=16", "ppo.optimizer.lr=5e-4", "ppo.kl_coef=0.001"]
ONE_CORE_EACH = ["learners.ranks=1", "learners.zero_stage=1", "rollout.threads=1", "scoring.threads=1"]
SEEDS = (0, 1, 2)
STALENESS = (1, 4, 8)
OBJECTIVES = {
    "naive": "proximal=behaviour",
    "decoupled": "correction=decoupled",
    "truncated": "correction=tis",
}
VARIANTS: dict[str, tuple[tuple[int, ...], list[str]]] = {
    "ppo": (SEEDS, SHORT),
    "grpo": (SEEDS, [*SHORT, *GROUPED, "ppo.advantage=grpo"]),
    "rloo": (SEEDS, [*SHORT, *GROUPED, "ppo.advantage=rloo"]),
    "reinforce_pp": (SEEDS, [*SHORT, *NO_CRITIC, "ppo.advantage=reinforce_pp"]),
    "ptx": ((0,), [*SHORT, "ppo.ptx_coef=0.5"]),
    "overoptimization": ((0,), [*SHORT, *LONG]),
    **{
        f"{kind}_{n}": ((0,), [*SHORT, f"ppo.staleness={n}", f"ppo.{how}"])
        for kind, how in OBJECTIVES.items()
        for n in STALENESS
    },
    "overlap_0": (SEEDS, [*SHORT, *ONE_CORE_EACH]),
    "overlap_1": (SEEDS, [*SHORT, *ONE_CORE_EACH, "ppo.staleness=1", "ppo.correction=decoupled"]),
}
ADVANTAGES = ("ppo", "grpo", "rloo", "reinforce_pp")
PHASES = ("generation", "scoring", "learning", "iteration")
MEASURES = ("factual", "rude", "coherent", "score", "reward", "kl", "pretrain_loss")


def run_variants(source: Path, out: Path, names: list[str], changes: list[str]) -> None:
    todo = []
    for seed, name in ((seed, name) for seed in SEEDS for name in names if seed in VARIANTS[name][0]):
        root = out / f"{name}-{seed}"
        overrides = [*VARIANTS[name][1], *changes, f"seed={seed}", f"run_dir={root}", f"name={root.name}"]
        run = Run(load_config(source / "config.yaml", overrides))
        if not run.done("ppo"):
            todo.append(run)
    if not todo:
        return
    fleets = FleetManager(todo[0].config, out)
    try:
        fleets.start()
        for run in todo:
            run.root.mkdir(parents=True, exist_ok=True)
            for stage in ("data", "pretrain", "sft", "reward"):
                if not (run.root / stage).exists():
                    (run.root / stage).symlink_to(source / stage)
            print(run.root.name, flush=True)
            run.finish("ppo", 0.0, ppo.run(Context(run.config, run, fleets)))
    finally:
        fleets.close()


def finished(out: Path, name: str) -> list[list[dict[str, Any]]]:
    """Per finished seed, the rows of metrics."""
    roots = [out / f"{name}-{seed}" for seed in VARIANTS[name][0]]
    return [read_jsonl(root / "metrics.jsonl") for root in roots if (root / "ppo" / "done.json").exists()]


def evaluations(out: Path, name: str) -> list[list[dict[str, Any]]]:
    """Per finished seed, the rows of metrics that hold an evaluation."""
    return [[row for row in rows if "eval/reward" in row] for rows in finished(out, name)]


def print_table(out: Path) -> None:
    """Last evaluation and median seconds of the phases of an iteration, mean and standard deviation over the seeds."""
    print("| variant | seeds | " + " | ".join([*MEASURES, *(f"{phase}, s" for phase in PHASES)]) + " |")
    print("|---" * (len(MEASURES) + len(PHASES) + 2) + "|")
    for name in VARIANTS:
        seeds = evaluations(out, name)
        if seeds:
            cells = [[rows[-1].get(f"eval/{m}", math.nan) for rows in seeds] for m in MEASURES]
            steps = finished(out, name)
            cells += [
                [float(np.median([r[f"time/{phase}"] for r in rows[2:]])) for rows in steps]
                for phase in PHASES
            ]
            shown = " | ".join(f"{np.mean(c):.3f} ± {np.std(c, ddof=len(c) > 1):.3f}" for c in cells)
            print(f"| {name} | {len(seeds)} | {shown} |")


def curves(axis: Any, out: Path, names: tuple[str, ...], measure: str) -> None:
    """A measure over iterations: mean of the seeds, band from the lowest to the highest."""
    for name in names:
        seeds = evaluations(out, name)
        if seeds:
            steps, values = (
                [r["step"] for r in seeds[0]],
                np.array([[r[measure] for r in rows] for rows in seeds]),
            )
            (line,) = axis.plot(
                steps, values.mean(0), marker="o", markersize=3, label=f"{name} ({len(seeds)} seeds)"
            )
            axis.fill_between(
                steps, values.min(0), values.max(0), color=line.get_color(), alpha=0.15, linewidth=0
            )
    axis.set_xlabel("iteration")
    axis.set_title(measure.removeprefix("eval/"))
    axis.grid(alpha=0.3)


def draw(out: Path) -> None:
    if any(evaluations(out, name) for name in ADVANTAGES):
        figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
        for axis, measure in zip(axes, ("eval/score", "eval/reward", "eval/kl"), strict=True):
            curves(axis, out, ADVANTAGES, measure)
        axes[0].legend(fontsize=8)
        figure.savefig(out / "algorithms.svg", metadata={"Date": None})
    stale = [name for name in VARIANTS if name.startswith(tuple(OBJECTIVES))]
    if any(evaluations(out, name) for name in stale):
        figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained", sharey=True)
        for axis, kind in zip(axes, OBJECTIVES, strict=True):
            curves(axis, out, ("ppo", *(name for name in stale if name.startswith(kind))), "eval/score")
            axis.legend(fontsize=8)
        figure.savefig(out / "staleness.svg", metadata={"Date": None})
    if evaluations(out, "ptx"):
        figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
        for axis, measure in zip(axes, ("eval/pretrain_loss", "eval/score"), strict=True):
            curves(axis, out, ("ppo", "ptx"), measure)
        axes[0].legend(fontsize=8)
        figure.savefig(out / "ptx.svg", metadata={"Date": None})
    for rows in evaluations(out, "overoptimization"):
        best = read_json(out / "overoptimization-0" / "ppo" / "best_of_n.json")
        figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
        for axis, name, title in (
            (axes[0], "reward", "proxy: reward model"),
            (axes[1], "score", "gold: judge"),
        ):
            axis.plot(
                [math.sqrt(max(0, r["eval/kl"])) for r in rows],
                [r[f"eval/{name}"] for r in rows],
                "o-",
                markersize=3,
                label="PPO, KL coefficient 0.001",
            )
            axis.plot(
                [math.sqrt(b["kl"]) for b in best],
                [b[name] for b in best],
                "s--",
                markersize=3,
                label="best of n",
            )
            axis.set_xlabel("√KL to the SFT policy, √nats")
            axis.set_title(title)
            axis.grid(alpha=0.3)
        axes[0].legend(fontsize=8)
        figure.savefig(out / "overoptimization.svg", metadata={"Date": None})
        for alarm in read_jsonl(out / "overoptimization-0" / "ppo" / "alarms.jsonl"):
            print(f"alarm {alarm['alarm']}: {alarm['evidence']}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("variants", nargs="*", choices=[[], *VARIANTS])
    parser.add_argument("--set", dest="changes", nargs="*", default=[], metavar="key=value")
    given = parser.parse_args()
    run_variants(given.source.absolute(), given.out.absolute(), given.variants, given.changes)
    print_table(given.out)
    draw(given.out)
