"""Several policies answer each prompt, for people to rank (`hero rounds`).

RUN/sample/POLICY.jsonl has the responses of one policy, RUN/sample/responses.jsonl those of all,
`ResponsesRecord`s in which the responses of each prompt are in the order of the policies.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.context import Context
from cluster.rl.weight_sync import load_weights
from cluster.sampling_config import SampledPolicyConfig
from cluster.stages.collect import SampledPrompts, write_responses
from common.files import atomic_path, read_jsonl, write_jsonl
from common.random_streams import Stream, response_seeds
from learners.data.config import SourceConfig
from learners.data.encoding import encode_prompts
from learners.data.samples import offsets_of
from learners.data.sources import DatasetReader
from learners.data.tokenizer_loading import load_tokenizer

RESPONSES = 6
"""Of the SFT policy, where the config names none."""


def run(context: Context) -> dict[str, Any]:
    """Returns how many prompts and responses there are."""
    folder = context.run.stage("sample")
    policies = context.config.sample.policies or [_sft_policy(context)]
    parts = []
    for number, policy in enumerate(policies):
        file = folder / f"{policy.name}.jsonl"
        _sample(context, policy, number, file)
        parts.append(read_jsonl(file))
    rows = [_joined(records) for records in zip(*parts, strict=True)]
    if context.config.sample.reward_model:
        _write_features(context, Path(context.config.sample.reward_model), rows)
    write_jsonl(context.run.paths.sampled, rows)
    return {"prompts": len(rows), "responses": sum(len(row["responses"]) for row in rows)}


def _sft_policy(context: Context) -> SampledPolicyConfig:
    return SampledPolicyConfig(name="sft-0", path=str(context.run.model("sft")), responses=RESPONSES)


def _sample(context: Context, policy: SampledPolicyConfig, number: int, file: Path) -> None:
    """Writes the responses of one policy; continues after what is there."""
    model = Path(policy.path)
    tokenizer = load_tokenizer(model, context.config.model)
    rows, tokens = _prompts(context, tokenizer)
    rollouts = context.fleets.rollouts(context.run.model("sft"))
    load_weights(context, model)
    decoding = context.decoding("sample", temperature=1.0)
    source = {"model": policy.name, "version": policy.name}
    sampled = SampledPrompts(rows, tokenizer, source, decoding, policy.responses)
    prompt_ids = range(len(rows))
    seeds = response_seeds(context.config.seed, Stream.ROUND_SEEDS, (number,), prompt_ids, policy.responses)
    write_responses(rollouts, sampled, tokens, prompt_ids, seeds, file, f"sample {policy.name}")


def _prompts(context: Context, tokenizer: Any) -> tuple[list[dict[str, Any]], list[list[int]]]:
    limit = context.config.sample.max_response_tokens
    if context.config.sample.prompts is None:
        return context.prompts("prompts", tokenizer, limit)
    reader = DatasetReader("prompts", context.config.data, context.config.seed)
    context.readers["prompts"] = reader
    rows = reader.read([SourceConfig(path=context.config.sample.prompts)])
    return encode_prompts(rows, tokenizer, context.config.model.context - limit, reader)


def _write_features(context: Context, reward_model: Path, rows: Sequence[dict[str, Any]]) -> None:
    """features.npz: features (S, D) and scores (S,) of all responses, and where each prompt's begin."""
    scorers = context.fleets.scorers(context.run.model("sft"), reward_model)
    responses = []
    for row in rows:
        for text, ended in zip(row["responses"], row["ended"], strict=True):
            responses.append({"prompt": row["prompt"], "response": text, "ended": ended})
    found = scorers.features(responses)
    offsets = offsets_of([len(row["responses"]) for row in rows])
    with atomic_path(context.run.paths.sampled_features) as partial, open(partial, "wb") as file:
        np.savez(file, features=found.features_BD, scores=found.scores_B, offsets=offsets)


def _joined(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One record with the responses of all policies to a prompt."""
    joined = dict(records[0])
    for key in ("responses", "ended", "policy", "decoding"):
        joined[key] = [value for record in records for value in record[key]]
    return joined
