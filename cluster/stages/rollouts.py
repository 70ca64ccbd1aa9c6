"""What collect, ppo and evaluate share: putting weights into the engines, and judging responses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from torch import Tensor

from cluster.context import Context
from cluster.fleet import generate
from learners.errors import UserError
from learners.models import load_tokenizer
from learners.ragged import Samples
from learners.tokenizer import end_token


def load_weights(context: Context, folder: Path) -> int:
    """Puts the weights of a Hugging Face folder into every engine; returns the version they are known by."""
    rollouts = context.fleets.rollouts(folder)
    version = max(state["version"] for state in rollouts.all("ready")) + 1
    payload = context.fleets.transport.send(_stored(folder), rank=0, version=version)
    rollouts.all("update_weights", payload, version)
    return version


def _stored(folder: Path) -> Iterator[tuple[str, Tensor]]:
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                yield name, tensors.get_tensor(name)


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


def judge_policy(
    context: Context, rows: Sequence[dict[str, Any]], tokens: Sequence[Sequence[int]], stage: str, temperature: float
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Answers every row once with the engines' present weights: (rates and means, one answer a row)."""
    policy = context.run.model("sft")
    tokenizer = load_tokenizer(policy)
    scorers = context.fleets.scorers(policy, context.run.reward_model())
    seeds = [context.config.seed * 10**6 + 7 * i for i in range(len(rows))]
    decoding = context.decoding("evaluate", temperature)
    rollouts = context.fleets.rollouts(policy)
    refs = generate(rollouts, tokens, range(len(rows)), decoding, end_token(tokenizer), 1, seeds)
    scored = [scorers.submit(i, "score", ref, 1.0, dict(enumerate(rows))) for i, ref in enumerate(refs)]
    samples = Samples.concat(rollouts.get(refs, "generate"))
    parts = scorers.get(scored, "score")
    raw_KB = np.concatenate([p[0].raw_KB for p in parts], axis=1)
    sources = context.config.rewards.sources
    scores_B = np.array([source.weight for source in sources]) @ raw_KB
    ref_N = np.concatenate([p[1] for p in parts])
    texts = tokenizer.batch_decode([samples.response(b) for b in range(samples.size)], skip_special_tokens=True)
    judge = context.judge()
    answers: list[dict[str, Any]] = []
    for b, text in enumerate(texts):
        verdict = judge(rows[b], text, bool(samples.ended_B[b])) if judge else None
        answers.append(
            {
                "text": text,
                "ended": bool(samples.ended_B[b]),
                "reward": float(scores_B[b]) if np.isfinite(scores_B[b]) else None,
                **({"factual": verdict.factual, "rude": verdict.rude, "coherent": verdict.coherent} if verdict else {}),
            }
        )
    rates = {
        "reward": float(np.nanmean(scores_B)),
        **({f"reward/{s.name}": float(np.nanmean(raw)) for s, raw in zip(sources, raw_KB, strict=True)} if sources[1:] else {}),
        "length": float(samples.response_lengths_B.mean()),
        "ended": float(samples.ended_B.mean()),
        "count": float(samples.size),
    }
    if temperature == 1.0:
        rates["kl"] = float((samples.logprobs_N - ref_N)[samples.response_mask_N].sum() / samples.size)
    for key in ("factual", "rude", "coherent"):
        known = [a[key] for a in answers if a.get(key) is not None]
        if known:
            rates[key] = float(np.mean(known))
    return rates, answers
