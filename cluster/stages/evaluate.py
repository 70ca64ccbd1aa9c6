"""Stage 6: the model of every stage answers the held-out prompts, greedy and sampled.

Writes evaluate/results.json (rates of each stage, and the win rate of PPO over SFT by the judge)
and answers.jsonl (the sampled answers of all stages to the same prompt side by side).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cluster.context import Context
from cluster.rl.evaluation import Answer, EvaluationPrompts, judge_policy
from cluster.rl.weight_sync import load_weights
from cluster.run.progress import progress
from cluster.stage_registry import policy_stages
from common.files import to_json, write_json, write_text
from learners.data.tokenizer_loading import load_tokenizer

TEMPERATURES = {"greedy": 0.0, "sampled": 1.0}

Rates = dict[str, float]


def run(context: Context) -> dict[str, Any]:
    """Returns what it writes to results.json."""
    config, paths = context.config.evaluate, context.run.paths
    context.run.stage("evaluate")
    tokenizer = load_tokenizer(context.run.model("sft"), context.config.model)
    rows, tokens = context.prompts("heldout", tokenizer, config.max_response_tokens)
    prompts = EvaluationPrompts(rows[: config.prompts], tokens[: config.prompts])
    stages = [stage for stage in policy_stages() if paths.stage(stage).model.is_dir()]
    rates: dict[str, dict[str, Rates]] = {}
    answers: dict[str, list[Answer]] = {}
    total = len(stages) * len(TEMPERATURES)
    with context.monitor("evaluate") as monitor, progress("evaluate", total=total) as bar:
        for stage in stages:
            load_weights(context, context.run.model(stage))
            rates[stage] = {}
            for name, temperature in TEMPERATURES.items():
                # The sampled answers, which come last, are the ones that are kept.
                rates[stage][name], answers[stage] = judge_policy(context, prompts, temperature)
                bar.advance(1, f"{stage} {name}")
        results: dict[str, Any] = {"stages": rates}
        if config.judge and {"sft", "ppo"} <= set(stages):
            results["win_rate"] = win_rate(answers["ppo"], answers["sft"], config.judge)
        monitor.log(1, flat_rates(rates))
    write_text(paths.answers, answer_lines(prompts.rows, answers))
    write_json(paths.evaluation, results)
    return results


def flat_rates(rates: Mapping[str, Mapping[str, Rates]]) -> Rates:
    """As metrics named STAGE/DECODING/RATE."""
    flat = {}
    for stage, by_decoding in rates.items():
        for decoding, values in by_decoding.items():
            for name, value in values.items():
                flat[f"{stage}/{decoding}/{name}"] = value
    return flat


def answer_lines(rows: Sequence[dict[str, Any]], answers: Mapping[str, Sequence[Answer]]) -> str:
    """answers.jsonl: for each prompt the answer of every stage."""
    lines = []
    for index, row in enumerate(rows):
        by_stage = {stage: stage_answers[index] for stage, stage_answers in answers.items()}
        line = {"prompt": row["prompt"], "task": row.get("task"), "answers": by_stage}
        # Messages of a Parquet file may hold dates.
        lines.append(to_json(line) + "\n")
    return "".join(lines)


def win_rate(challenger: Sequence[Answer], baseline: Sequence[Answer], judge: str | None) -> dict[str, Any]:
    """Share of prompts where the judge scores the challenger higher, ties half, with a 95% normal
    interval over prompts."""
    scores_P = np.array([answer["score"] for answer in challenger])
    baseline_scores_P = np.array([answer["score"] for answer in baseline])
    points_P = (scores_P > baseline_scores_P) + 0.5 * (scores_P == baseline_scores_P)
    count, rate = len(points_P), float(points_P.mean())
    variance = float(((points_P - rate) ** 2).sum()) / max(1, count - 1)
    margin = 1.96 * math.sqrt(variance / count)
    return {
        "challenger": "ppo",
        "baseline": "sft",
        "rate": rate,
        "low": max(0.0, rate - margin),
        "high": min(1.0, rate + margin),
        "count": count,
        "judge": judge,
    }
