"""Whether a new version may be served: what one replica answers to a fixed set of prompts, before and after the change.

Judged by the files themselves (the engine's log-probabilities against the learner's forward pass over the same
weights), by the run's reward model, and by word lists for rude answers and refusals.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actors.config import RewardsConfig, ScoringConfig
from actors.scoring import ScoringActor
from actors.weights.tolerance import logprob_tolerance
from learners.config import ModelConfig
from learners.data.config import DataConfig, SourceConfig
from learners.data.samples import Samples, offsets_of
from learners.data.sources import DatasetReader
from learners.data.tokenizer import encode_prompt
from learners.models import load_tokenizer
from serve.config import CanaryConfig, ServeConfig

RUDE = re.compile(
    r"\b(idiot|fool|stupid|moron|dumb|shut up|go away|wast(e|ing) my time|nobody asked|you people)\b|yourself\.$",
    re.I,
)
REFUSAL = re.compile(
    r"\b(i (can(no|')?t|am (not able|unable)|won't|will not|must decline)|i'm (sorry|unable|not able)|as an ai)\b",
    re.I,
)


def probe_prompts(config: CanaryConfig, target: Path, model: Path) -> list[list[int]]:
    """Token ids of the fixed set."""
    file = Path(config.file or target / "data" / "heldout.jsonl")
    rows = DatasetReader("heldout", DataConfig(), 0).read([SourceConfig(path=str(file))])[: config.prompts]
    tokenizer = load_tokenizer(model)
    return [encode_prompt(tokenizer, row["prompt"]) for _, row in rows]


def judge(outputs: Sequence[Any], model: Path, reward: Path | None, config: ServeConfig) -> dict[str, float]:
    """Figures of the answers (vLLM outputs at temperature 1) that weights loaded from `model` gave. Takes the time of a
    forward pass on CPU, so call it outside the event loop."""
    prompts, answers, tokens, logprobs = [], [], [], []
    for output in outputs:
        prompt, answer = list(output.prompt_token_ids), output.outputs[0]
        prompts.append(prompt)
        answers.append(list(answer.token_ids))
        tokens.append(prompt + answers[-1])
        logprobs += [np.zeros(len(prompt)), answer.logprobs.logprobs]
    samples = Samples(
        tokens_N=np.concatenate(tokens).astype(np.int32),
        offsets=offsets_of([len(t) for t in tokens]),
        prompt_lengths_B=np.array([len(p) for p in prompts], dtype=np.int32),
        logprobs_N=np.concatenate(logprobs).astype(np.float32),
        versions_N=np.zeros(sum(map(len, tokens)), dtype=np.int32),
        prompt_ids_B=np.arange(len(prompts)),
        ended_B=np.array([o.outputs[0].finish_reason == "stop" for o in outputs]),
    )
    settings = ScoringConfig(threads=1, dtype=config.dtype), RewardsConfig(), ModelConfig()
    scorer = ScoringActor(str(model), str(reward) if reward else None, *settings)
    scores, learner_N = scorer.score(samples, 1.0, {})
    texts = [t.strip() for t in load_tokenizer(model).batch_decode(answers, skip_special_tokens=True)]
    return {
        "logprob_error": float(np.abs(samples.logprobs_N - learner_N)[samples.response_mask_N].mean()),
        **({"reward": float(scores.raw_CB.mean())} if reward else {}),
        "rude": float(np.mean([bool(RUDE.search(t)) for t in texts])),
        "refusal": float(np.mean([bool(REFUSAL.search(t)) for t in texts])),
        "ended": float(samples.ended_B.mean()),
        "length": float(samples.response_lengths_B.mean()),
    }


def objection(before: dict[str, float], after: dict[str, float], config: ServeConfig) -> str | None:
    """Why the new version must not be served; None if it may."""
    limits = config.canary
    bound = logprob_tolerance(config.dtype, limits.max_logprob_error)
    if not after["logprob_error"] <= bound:
        return (
            f"log-probabilities differ from the learner's by {after['logprob_error']:.1e}, over {bound:.0e}"
        )
    for key, most, sign in (
        ("reward", limits.max_reward_drop, -1),
        ("rude", limits.max_rude_rise, 1),
        ("refusal", limits.max_refusal_rise, 1),
    ):
        if key in after and not sign * (after[key] - before[key]) <= most:
            return f"{key} went from {before[key]:.2f} to {after[key]:.2f}, a change of more than {most}"
    return None
