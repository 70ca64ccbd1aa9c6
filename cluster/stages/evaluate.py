"""Stage 6: every stage's model answers the held-out prompts, sampled and greedy; PPO is compared with SFT."""

from __future__ import annotations

import json
import math
from typing import Any

from cluster.context import Context
from cluster.rl.evaluation import judge_policy
from cluster.rl.weight_sync import load_weights
from cluster.run.progress import progress
from common.files import write_json, write_text
from learners.models import load_tokenizer

MODELS = ("pretrain", "sft", "ppo")


def run(context: Context) -> dict[str, Any]:
    folder, config = context.run.stage("evaluate"), context.config.evaluate
    stages = [s for s in MODELS if (context.run.root / s / "model").is_dir()]
    tokenizer = load_tokenizer(context.run.model("sft"))
    rows, tokens = context.prompts("heldout", tokenizer, config.max_response_tokens)
    rows, tokens = rows[: config.prompts], tokens[: config.prompts]
    found: dict[str, dict[str, dict[str, float]]] = {}
    answers: dict[str, list[dict[str, Any]]] = {}
    with context.monitor("evaluate") as monitor, progress("evaluate", total=2 * len(stages)) as bar:
        for stage in stages:
            load_weights(context, context.run.model(stage))
            found[stage] = {}
            for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
                found[stage][name], answers[stage] = judge_policy(context, rows, tokens, temperature)
                bar.advance(1, f"{stage} {name}")
        results: dict[str, Any] = {"stages": found}
        if context.judge() and {"sft", "ppo"} <= set(stages):
            results["win_rate"] = win_rate(answers["ppo"], answers["sft"], config.judge)
        monitor.log(
            1, {f"{s}/{n}/{k}": v for s, by in found.items() for n, r in by.items() for k, v in r.items()}
        )
    lines = [
        {"prompt": row["prompt"], "task": row.get("task"), "answers": {s: answers[s][i] for s in stages}}
        for i, row in enumerate(rows)
    ]
    write_text(folder / "answers.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    write_json(folder / "results.json", results)
    return results


def win_rate(
    challenger: list[dict[str, Any]], baseline: list[dict[str, Any]], judge: str | None
) -> dict[str, Any]:
    """Share of prompts where the judge scores the challenger higher, ties half, with a 95% normal interval over prompts."""
    pairs = [(ours["score"], theirs["score"]) for ours, theirs in zip(challenger, baseline, strict=True)]
    points = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs]
    rate = sum(points) / len(points)
    variance = sum((p - rate) ** 2 for p in points) / max(1, len(points) - 1)
    margin = 1.96 * math.sqrt(variance / len(points))
    return {
        "challenger": "ppo",
        "baseline": "sft",
        "rate": rate,
        "low": max(0.0, rate - margin),
        "high": min(1.0, rate + margin),
        "count": len(points),
        "judge": judge,
    }
