"""What collect, ppo and evaluate share: putting weights into the engines, and judging responses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import snapshot_download

from actors.weights import stored_tensors
from cluster.context import Context
from cluster.fleets import generate
from learners.errors import UserError
from learners.estimates import best_of_n, best_of_n_kl, pass_at_k
from learners.models import load_tokenizer
from learners.ragged import Samples
from learners.tokenizer import end_token


def load_weights(context: Context, folder: Path) -> int:
    """Puts the weights of a Hugging Face folder into every engine; returns the version they are known by."""
    rollouts = context.fleets.rollouts(folder)
    version = max(state["version"] for state in rollouts.all("ready")) + 1
    stored = folder if folder.is_dir() else Path(snapshot_download(str(folder)))
    if not list(stored.glob("*.safetensors")):
        raise UserError(f"{folder}: no weights in *.safetensors files; save the model again with transformers")
    payload = context.fleets.transport.send(stored_tensors(str(stored)), rank=0, version=version)
    rollouts.all("update_weights", payload, version)
    return version


def prove_sync(context: Context, sequences: list[np.ndarray], version: int) -> dict[str, float]:
    """Compares the log-probabilities of probe prompts between learners and engines; over the bound the run stops.

    The bound is on the mean absolute difference, in nats. The largest is reported beside it: it belongs to tokens so
    unlikely that float32 itself resolves them no better.
    """
    config = context.config.ppo
    bound = config.sync_bound or (1e-5 if config.dtype == "float32" else 0.05)
    learners, rollouts = context.fleets.learners(), context.fleets.rollouts(context.run.model("sft"))
    probed = [learners.submit(i, "probe", sequences) for i in range(len(learners))]
    engines = rollouts.all("prompt_logprobs", [s.tolist() for s in sequences])
    expected = np.concatenate(learners.get(probed, "probe")[0])
    errors = [np.abs(np.concatenate(engine) - expected) for engine in engines]
    mean = max(float(e.mean()) for e in errors)
    if not mean <= bound:
        raise UserError(
            f"weight sync to version {version}: the engines' log-probabilities differ from the learner's by {mean:.2e}, over "
            f"the bound ppo.sync_bound={bound:.0e}; the engines do not hold the learner's weights, so the run stops"
        )
    return {"sync/mean_error": mean, "sync/max_error": max(float(e.max()) for e in errors)}


def respond(
    context: Context, rows: Sequence[dict[str, Any]], tokens: Sequence[Sequence[int]], temperature: float, count: int
) -> tuple[Samples, np.ndarray, list[dict[str, Any]]]:
    """(samples, ref_logprobs_N, answers): `count` responses to each row with the engines' present weights, row by row; an
    answer has text, ended, reward and the judge's measures."""
    policy = context.run.model("sft")
    tokenizer = load_tokenizer(policy)
    scorers, sources = context.fleets.scorers(policy, context.run.reward_model()), context.config.rewards.sources
    seeds = [context.config.seed * 10**6 + 7 * i for i in range(len(rows) * count)]
    decoding = context.decoding("evaluate", temperature)
    rollouts = context.fleets.rollouts(policy)
    refs = generate(rollouts, tokens, range(len(rows)), decoding, end_token(tokenizer), count, seeds)
    scored = [scorers.submit(i, "score", ref, 1.0, dict(enumerate(rows))) for i, ref in enumerate(refs)]
    samples = Samples.concat(rollouts.get(refs, "generate"))
    parts = scorers.get(scored, "score")
    texts = tokenizer.batch_decode([samples.response(b) for b in range(samples.size)], skip_special_tokens=True)
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
        rates["score_error"] = float(columns["score"].mean(1).std(ddof=1) / len(rows) ** 0.5) if len(rows) > 1 else 0.0
    if count > 1 and config.judge:
        if config.passes not in columns:
            raise UserError(f"evaluate.passes={config.passes}: not a measure of {config.judge}, which gives {', '.join(columns)}")
        known = columns[config.passes][~np.isnan(columns[config.passes]).any(1)]
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
