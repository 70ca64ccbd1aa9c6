"""Stage 6: the starting model and that of every stage answer the held-out prompts, greedy and sampled.

Writes evaluate/results.json (rates of each model, and the win rate by the judge of the last one over
the one that it was made from) and answers.jsonl (the sampled answers of all models to the same prompt
side by side).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.context import Context
from cluster.rl.evaluation import Answer, EvaluationPrompts, judge_policy
from cluster.rl.weight_sync import load_weights
from cluster.run.progress import progress
from cluster.stage_registry import policy_stages, stage_spec
from common.files import to_json, write_json, write_text
from learners.data.tokenizer_loading import load_tokenizer

BASE = "base"
"""Name of the starting model beside those of the stages."""

TEMPERATURES = {"greedy": 0.0, "sampled": 1.0}

Rates = dict[str, float]


def run(context: Context) -> dict[str, Any]:
    """Returns what it writes to results.json."""
    config, paths = context.config.evaluate, context.run.paths
    models = policies(context)
    context.run.stage("evaluate")
    tokenizer = load_tokenizer(context.run.model("sft"), context.config.model)
    rows, tokens = context.prompts("heldout", tokenizer, config.max_response_tokens)
    prompts = EvaluationPrompts(rows[: config.prompts], tokens[: config.prompts])
    rates: dict[str, dict[str, Rates]] = {}
    answers: dict[str, list[Answer]] = {}
    total = len(models) * len(TEMPERATURES)
    with context.monitor("evaluate") as monitor, progress("evaluate", total=total) as bar:
        for model, folder in models.items():
            load_weights(context, folder)
            rates[model] = {}
            for name, temperature in TEMPERATURES.items():
                # The sampled answers, which come last, are the ones that are kept.
                rates[model][name], answers[model] = judge_policy(context, prompts, temperature)
                bar.advance(1, f"{model} {name}")
        results: dict[str, Any] = {"stages": rates}
        if config.judge and len(models) > 1:
            wins = win_rate(answers, config.judge, *compared(list(answers)))
            results |= {"win_rate": wins} if wins else {}
        monitor.log(1, flat_rates(rates))
    write_text(paths.answers, answer_lines(prompts.rows, answers))
    write_json(paths.evaluation, results)
    return results


def policies(context: Context) -> dict[str, Path]:
    """By name, in the order in which they were made: `base`, the model that the run starts from if the
    config gives one, and the policy of each stage."""
    models = {}
    if context.config.model.path:
        models[BASE] = Path(context.config.model.path)
    for stage in policy_stages():
        folder = context.run.paths.stage(stage).model
        if folder.is_dir():
            models[stage] = folder
    for policy in context.config.evaluate.policies:
        # In front, as the last one is compared with the one that it was made from.
        models = {policy.name: Path(policy.path), **models}
    if not models:
        # Says which stage makes one.
        models["pretrain"] = context.run.model("pretrain")
    return models


def flat_rates(rates: Mapping[str, Mapping[str, Rates]]) -> Rates:
    """As metrics named STAGE/DECODING/RATE."""
    flat = {}
    for stage, by_decoding in rates.items():
        for decoding, values in by_decoding.items():
            for name, value in values.items():
                flat[f"{stage}/{decoding}/{name}"] = value
    return flat


def answer_lines(rows: Sequence[dict[str, Any]], answers: Mapping[str, Sequence[Answer]]) -> str:
    """answers.jsonl: for each prompt the answer of every model."""
    lines = []
    for index, row in enumerate(rows):
        by_stage = {stage: stage_answers[index] for stage, stage_answers in answers.items()}
        line = {"prompt": row["prompt"], "task": row.get("task"), "answers": by_stage}
        # Messages of a Parquet file may hold dates.
        lines.append(to_json(line) + "\n")
    return "".join(lines)


def compared(models: Sequence[str]) -> tuple[str, str]:
    """(the model that the last one was made from, the last one): alternatives to the last one, which were
    made from the same model, are passed over."""
    alternatives = {stage for stage in policy_stages() if stage_spec(stage).from_sft}
    challenger = models[-1]
    earlier = list(models[:-1])
    if challenger in alternatives:
        # A run that continues another may have nothing else.
        earlier = [model for model in earlier if model not in alternatives] or earlier
    return earlier[-1], challenger


def win_rate(
    answers: Mapping[str, Sequence[Answer]], judge: str, baseline: str, challenger: str
) -> dict[str, Any] | None:
    """Share of prompts where the judge scores one model higher than another, ties half, with a 95% normal
    interval over the prompts with both scores; None if there are none."""
    scores_P = np.array([answer["score"] for answer in answers[challenger]], dtype=float)
    baseline_scores_P = np.array([answer["score"] for answer in answers[baseline]], dtype=float)
    points_P = (scores_P > baseline_scores_P) + 0.5 * (scores_P == baseline_scores_P)
    points_P = points_P[np.isfinite(scores_P) & np.isfinite(baseline_scores_P)]
    if not len(points_P):
        return None
    count, rate = len(points_P), float(points_P.mean())
    variance = float(((points_P - rate) ** 2).sum()) / max(1, count - 1)
    margin = 1.96 * math.sqrt(variance / count)
    return {
        "challenger": challenger,
        "baseline": baseline,
        "rate": rate,
        "low": max(0.0, rate - margin),
        "high": min(1.0, rate + margin),
        "count": count,
        "judge": judge,
    }
