"""The HTML page of a run: curves, evaluation by stage, the same prompts answered by each stage. One file, no network."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json, read_jsonl, write_text

# Charts in the order of the page: title, stage, metrics drawn together.
CHARTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Reward model score", "ppo", ("objective/scores", "eval/reward")),
    ("KL to the SFT policy, nats a response", "ppo", ("objective/kl", "eval/kl")),
    ("Response length, tokens", "ppo", ("response/length", "eval/length")),
    ("Entropy, nats a token", "ppo", ("objective/entropy",)),
    ("Held-out prompts, sampled", "ppo", ("eval/factual", "eval/rude", "eval/coherent", "eval/pass@1")),
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
)
POINTS = 300  # of one curve; a longer one is averaged over equal strides
ANSWERS = 60  # prompts shown side by side


def write_report(root: Path) -> Path:
    """Writes `root/report.html` from the run's files, whole or not at all. Raises UserError if this is no run."""
    if not (root / "config.yaml").exists():
        raise UserError(f"{root}: not a run directory (no config.yaml); give one that `hero run` made")
    rows = read_jsonl(root / "metrics.jsonl")
    charts = []
    for title, stage, names in CHARTS:
        own = [row for row in rows if row["stage"] == stage]
        curves = {n: [(r["step"], r[n]) for r in own if r.get(n) is not None] for n in names}
        shown = {n: _thinned(points) for n, points in curves.items() if points}
        if shown:
            charts.append({"title": title, "stage": stage, "curves": shown})
    charts += optimization(
        [r for r in rows if r["stage"] == "ppo"], read_json(root / "ppo" / "best_of_n.json") or []
    )
    stages = ("pretrain", "sft", "collect", "reward", "ppo", "evaluate")
    page = {
        "name": root.name,
        "config": (root / "config.yaml").read_text(encoding="utf-8"),
        "charts": charts,
        "done": {s: d for s in stages if (d := read_json(root / s / "done.json"))},
        "alarms": read_jsonl(root / "ppo" / "alarms.jsonl"),
        "evaluation": read_json(root / "evaluate" / "results.json"),
        "answers": read_jsonl(root / "evaluate" / "answers.jsonl")[:ANSWERS],
        "timings": read_json(root / "timings.json"),
    }
    template = (Path(__file__).parent / "report.html").read_text(encoding="utf-8")
    # "</" inside a script element could close it; in JSON strings "<\/" means the same.
    data = json.dumps(page).replace("</", "<\\/")
    write_text(root / "report.html", template.replace("/*DATA*/null", data))
    return root / "report.html"


def optimization(rows: Sequence[dict[str, Any]], best_of: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Charts of the reward model's and the judge's score over the square root of the KL, PPO beside best-of-n of the SFT
    policy, as over-optimisation is usually drawn (Gao et al. 2022, arXiv:2210.10760)."""
    charts = []
    for name, title in (("reward", "Reward model score over √KL"), ("score", "Judge's score over √KL")):
        curves = {
            "PPO": [
                (math.sqrt(max(0.0, r["eval/kl"])), r[f"eval/{name}"]) for r in rows if f"eval/{name}" in r
            ],
            "best of n": [(math.sqrt(b["kl"]), b[name]) for b in best_of if name in b],
        }
        shown = {n: points for n, points in curves.items() if points}
        if shown:
            charts.append({"title": title, "stage": "ppo", "x": "√nats", "curves": shown})
    return charts


def _thinned(points: list[tuple[int, float]]) -> list[tuple[float, float]]:
    stride = -(-len(points) // POINTS)
    parts: list[Any] = [points[i : i + stride] for i in range(0, len(points), stride)]
    return [(p[-1][0], sum(y for _, y in p) / len(p)) for p in parts]
