"""What collect, ppo and evaluate share: putting weights into the engines, and judging responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cluster.context import Context
from common.errors import UserError
from learners.data.samples import Samples
from learners.data.tokenizer import end_token
from learners.models import load_tokenizer
from learners.rl.estimates import best_of_n, best_of_n_kl, pass_at_k


def respond(
    context: Context,
    rows: Sequence[dict[str, Any]],
    tokens: Sequence[Sequence[int]],
    temperature: float,
    count: int,
) -> tuple[Samples, np.ndarray, list[dict[str, Any]]]:
    """(samples, ref_logprobs_N, answers): `count` responses to each row with the engines' present weights, row by row; an
    answer has text, ended, reward and the judge's measures."""
    policy = context.run.model("sft")
    tokenizer = load_tokenizer(policy)
    scorers, sources = (
        context.fleets.scorers(policy, context.run.reward_model()),
        context.config.rewards.sources,
    )
    seeds = [context.config.seed * 10**6 + 7 * i for i in range(len(rows) * count)]
    decoding = context.decoding("evaluate", temperature)
    rollouts = context.fleets.rollouts(policy)
    refs = rollouts.generate(tokens, range(len(rows)), decoding, end_token(tokenizer), count, seeds)
    scored = [scorers.submit(i, "score", ref, 1.0, dict(enumerate(rows))) for i, ref in enumerate(refs)]
    samples = Samples.concat(rollouts.wait(refs, "generate"))
    parts = scorers.wait(scored, "score")
    texts = tokenizer.batch_decode(
        [samples.response(b) for b in range(samples.size)], skip_special_tokens=True
    )
    judge = context.judge()
    raw_KB = np.concatenate([scores.raw_KB for scores, _ in parts], axis=1)
    total_B = np.array([source.weight for source in sources]) @ raw_KB
    answers = []
    for b, text in enumerate(texts):
        scores = {"reward": total_B[b]}
        if len(sources) > 1:
            scores |= {f"reward/{source.name}": raw_KB[k, b] for k, source in enumerate(sources)}
        known = {name: float(score) if np.isfinite(score) else None for name, score in scores.items()}
        found = judge(rows[samples.prompt_ids_B[b]], text, bool(samples.ended_B[b])) if judge else {}
        answers.append({"text": text, "ended": bool(samples.ended_B[b]), **known, **found})
    return samples, np.concatenate([p[1] for p in parts]), answers


def judge_policy(
    context: Context, rows: Sequence[dict[str, Any]], tokens: Sequence[Sequence[int]], temperature: float
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Answers every row with the engines' present weights: (rates and means, the first answer to each row)."""
    config = context.config.evaluate
    count = config.samples if temperature else 1
    samples, ref_N, answers = respond(context, rows, tokens, temperature, count)
    columns = columns_of(answers, count)
    rates = {name: float(np.nanmean(values_PM)) for name, values_PM in columns.items()}
    rates |= {"length": float(samples.response_lengths_B.mean()), "count": float(samples.size)}
    if temperature == 1.0:
        rates["kl"] = float((samples.logprobs_N - ref_N)[samples.response_mask_N].sum() / samples.size)
    if "score" in columns:
        rates["score_error"] = (
            float(columns["score"].mean(1).std(ddof=1) / len(rows) ** 0.5) if len(rows) > 1 else 0.0
        )
    if count > 1 and config.judge:
        if config.pass_metric not in columns:
            raise UserError(
                f"evaluate.pass_metric={config.pass_metric}: not a measure of {config.judge}, which gives {', '.join(columns)}"
            )
        known = columns[config.pass_metric][~np.isnan(columns[config.pass_metric]).any(1)]
        for k in sorted({2**i for i in range(count.bit_length())} | {count}):
            right = [pass_at_k(int((row_M >= 1).sum()), count, k) for row_M in known]
            rates[f"pass@{k}"] = float(np.mean(right))
        rates[f"mean@{count}"] = rates["pass@1"]
    return rates, answers[::count]


def columns_of(answers: Sequence[dict[str, Any]], count: int) -> dict[str, np.ndarray]:
    """Reward and the judge's measures as float (P, M) arrays over prompts and responses, nan where a measure has none."""
    names = [name for name in answers[0] if name != "text" and any(a[name] is not None for a in answers)]
    return {n: np.array([a[n] for a in answers], dtype=float).reshape(-1, count) for n in names}


def best_of_sft(
    context: Context, rows: Sequence[dict[str, Any]], tokens: Sequence[Sequence[int]], most: int
) -> list[dict[str, float]]:
    """Best of n = 1, 2, 4, … up to `most` samples by the reward model, from the engines' present weights: n, analytic KL,
    mean reward and measures of the chosen response."""
    columns = columns_of(respond(context, rows, tokens, 1.0, most)[2], most)
    return [
        {"n": n, "kl": best_of_n_kl(n), **{k: best_of_n(columns["reward"], v, n) for k, v in columns.items()}}
        for n in (2**i for i in range(most.bit_length()))
    ]
