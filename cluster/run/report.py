"""The HTML page of a run: curves, evaluation by stage, the same prompts answered by each stage.

One file that loads nothing from the network.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.stage_registry import STAGE_SPECS
from common.errors import UserError
from common.files import read_json, read_jsonl, write_text
from common.run_paths import RunPaths
from learners.data.conversations import readable

# In the order of the page: title, stage, metrics drawn together. A chart without values is left
# out.
CHARTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Reward model score", "ppo", ("objective/scores", "eval/reward")),
    ("KL to the SFT policy, nats a response", "ppo", ("objective/kl", "eval/kl")),
    ("Response length, tokens", "ppo", ("response/length", "eval/length")),
    ("Return of an episode", "ppo", ("episode/return", "eval/episode/return")),
    ("Turns of an episode", "ppo", ("episode/turns", "eval/episode/turns")),
    (
        "Episodes by their end",
        "ppo",
        ("episode/done", "episode/truncated", "episode/timed_out", "episode/failed"),
    ),
    ("Tool calls of an episode", "ppo", ("environment/tool_calls", "environment/tool_errors")),
    ("Entropy, nats a token", "ppo", ("objective/entropy",)),
    ("Held-out prompts, sampled", "ppo", ("eval/factual", "eval/rude", "eval/coherent", "eval/pass@1")),
    ("Scores of the reward sources", "ppo", ("rewards/*",)),
    ("Disagreement of the reward models", "ppo", ("rewards/disagreement",)),
    ("Pre-training loss", "ppo", ("eval/pretrain_loss",)),
    ("Policy loss", "ppo", ("loss/policy_avg",)),
    ("Value loss", "ppo", ("loss/value_avg",)),
    ("Clipped and approximate KL of the update", "ppo", ("policy/clipfrac_avg", "policy/approxkl_avg")),
    ("Variance explained by the critic", "ppo", ("val/var_explained",)),
    ("Engine against learner log-probabilities", "ppo", ("mismatch/mean", "sync/mean_error")),
    ("Seconds of an iteration", "ppo", ("time/generation", "time/scoring", "time/learning", "time/sync")),
    ("Pre-training loss", "pretrain", ("loss/train", "loss/validation")),
    ("SFT loss", "sft", ("loss/train", "loss/validation")),
    ("Reward model loss", "reward", ("loss/train",)),
    ("SFT loss on the best of n", "best_of_n", ("loss/train", "loss/validation")),
    ("DPO loss", "dpo", ("loss/train", "loss/validation")),
    ("Implicit reward of the better and the worse response", "dpo", ("rewards/better", "rewards/worse")),
)
# Metrics that are named as reward sources are, and are none.
NOT_SOURCES = ("rewards/disagreement", "rewards/quarantined")
# Of one curve. A longer one is averaged over equal strides.
POINTS = 300
# Prompts whose answers are shown side by side.
ANSWERS = 60

Curve = list[tuple[float, float]]


def write_report(root: Path) -> Path:
    """Writes the report of a run directory and returns its path. Raises UserError if this is no run."""
    paths = RunPaths(root)
    if not paths.config.exists():
        raise UserError(
            f"{root}: not a run directory (no {paths.config.name}); give one that `hero run` made"
        )
    page = {
        "name": root.name,
        "config": paths.config.read_text(encoding="utf-8"),
        "charts": metric_charts(read_jsonl(paths.metrics)) + over_optimization_charts(paths),
        "stages": finished_stages(paths),
        "alarms": read_jsonl(paths.alarms),
        "evaluation": read_json(paths.evaluation),
        "answers": [
            {**line, "prompt": readable(line["prompt"])} for line in read_jsonl(paths.answers)[:ANSWERS]
        ],
        "timings": read_json(paths.timings),
    }
    template = (Path(__file__).parent / "report.html").read_text(encoding="utf-8")
    # "</" inside a script element could close it; in JSON strings "<\/" means the same.
    data = json.dumps(page).replace("</", "<\\/")
    write_text(paths.report, template.replace("/*DATA*/null", data))
    return paths.report


def finished_stages(paths: RunPaths) -> list[dict[str, Any]]:
    """Name, title, seconds and results of each finished stage, in order."""
    stages = []
    for spec in STAGE_SPECS:
        record = read_json(paths.stage(spec.name).done)
        if record:
            stages.append({"name": spec.name, "title": spec.title, **record})
    return stages


def metric_charts(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of CHARTS that have values: title, stage, and curves of (step, value) by metric."""
    charts = []
    for title, stage, names in CHARTS:
        curves: dict[str, Curve] = {}
        for name in _expanded(names, rows, stage):
            points = _points(rows, stage, name)
            if points:
                curves[name] = _averaged(points)
        if curves:
            charts.append({"title": title, "stage": stage, "curves": curves})
    return charts


def _expanded(names: Sequence[str], rows: Sequence[dict[str, Any]], stage: str) -> list[str]:
    """With the names of a stage's metrics in place of those that end in *, as reward sources have names of
    their own."""
    expanded: list[str] = []
    for name in names:
        if not name.endswith("*"):
            expanded.append(name)
            continue
        known = dict.fromkeys(key for row in rows if row["stage"] == stage for key in row)
        expanded += [key for key in known if key.startswith(name[:-1]) and key not in NOT_SOURCES]
    return expanded


def over_optimization_charts(paths: RunPaths) -> list[dict[str, Any]]:
    """Charts of the reward model's and the judge's score over the square root of the KL, PPO beside
    best-of-n of the SFT policy, as over-optimization is usually drawn (Gao et al. 2022,
    arXiv:2210.10760)."""
    evaluations = [row for row in read_jsonl(paths.metrics) if row["stage"] == "ppo"]
    best_of_n = read_json(paths.best_of_n) or []
    charts = []
    for name, title in (("reward", "Reward model score over √KL"), ("score", "Judge's score over √KL")):
        curves: dict[str, Curve] = {"PPO": [], "best of n": []}
        for row in evaluations:
            # Without the reference policy there is no KL.
            if f"eval/{name}" in row and "eval/kl" in row:
                # An estimate of a KL near 0 can be negative.
                curves["PPO"].append((math.sqrt(max(0.0, row["eval/kl"])), row[f"eval/{name}"]))
        for row in best_of_n:
            if name in row:
                curves["best of n"].append((math.sqrt(row["kl"]), row[name]))
        with_points = {label: curve for label, curve in curves.items() if curve}
        if with_points:
            charts.append({"title": title, "stage": "ppo", "x": "√nats", "curves": with_points})
    return charts


def _points(rows: Sequence[dict[str, Any]], stage: str, name: str) -> Curve:
    points = []
    for row in rows:
        if row["stage"] == stage and row.get(name) is not None:
            points.append((row["step"], row[name]))
    return points


def _averaged(points: Curve) -> Curve:
    """At most POINTS points: the mean of each stride, at its last step."""
    # Browsers slow down with tens of thousands of points, and curves of metrics are noisy.
    stride = -(-len(points) // POINTS)
    averaged = []
    for start in range(0, len(points), stride):
        part = points[start : start + stride]
        mean = sum(value for _, value in part) / len(part)
        averaged.append((part[-1][0], mean))
    return averaged
