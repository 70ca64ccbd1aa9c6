"""Stage 4: the reward model, from rankings; a prompt with all its pairs is one element of a batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cluster.context import Context
from cluster.run.progress import progress
from cluster.stages.supervised import supervise
from common.files import read_json, write_json
from learners.data.datasets import RankingData, hold_out
from learners.data.encoding import encode_rankings
from learners.data.sources import SourceRow
from learners.models import load_tokenizer
from learners.supervised.ranking import agreement_rates


def run(context: Context) -> dict[str, Any]:
    config, folder = context.config, context.run.stage("reward")
    policy, (rows, reader) = context.run.model("sft"), context.read("rankings")
    tokenizer, share = load_tokenizer(policy, config.model), config.reward_model.validation_share
    data = encode_rankings(
        rows, tokenizer, config.model.context, reader, share, config.seed, true_worth(context, rows)
    )
    folds = cross_validate(context, policy, data) if config.reward_model.folds > 1 else {}
    data.save(folder / "rankings.npz")
    learners = context.fleets.learners()
    total = learners.all("start_reward", policy, config.reward_model, folder, config.seed)[0]
    demonstrations = context.run.stage("sft") / "demonstrations.npz"

    def finish() -> dict[str, float]:
        return {
            **folds,
            **({"bias": learners.all("center", demonstrations)[0]} if demonstrations.exists() else {}),
        }

    consumed = [policy, *context.run.data("rankings")]
    return supervise(
        context, "reward", learners, total, config.reward_model.checkpoint_every, consumed, finish
    )


def cross_validate(context: Context, policy: Path, data: RankingData) -> dict[str, float]:
    """Trains one model for each fold on all other folds; the rates over all held-out prompts together. Folds that an
    interrupted run has finished are kept."""
    config, scratch = context.config.reward_model, context.run.stage("reward") / "folds"
    learners, found = context.fleets.learners(), read_json(scratch / "counts.json") or []
    scratch.mkdir(exist_ok=True)
    with progress("folds", total=config.folds, done=len(found)) as bar:
        for fold in range(len(found), config.folds):
            is_validation_G = hold_out(data.owner_G.tolist(), 1 / config.folds, context.config.seed, fold)
            RankingData(**{**vars(data), "is_validation_G": is_validation_G}).save(scratch / "rankings.npz")
            total = learners.all("start_reward", policy, config, scratch, context.config.seed)[0]
            learners.all("train", total)
            found.append(learners.all("agreement")[0].tolist())
            write_json(scratch / "counts.json", found)
            rate = agreement_rates(np.array(found[-1]))["accuracy/labelers"]
            bar.advance(1, f"accuracy {rate:.3f} on the part left out")
    rates = agreement_rates(np.array([prompt for counts in found for prompt in counts]))
    each = [agreement_rates(np.array(counts))["accuracy/labelers"] for counts in found]
    return {f"folds/{name}": value for name, value in rates.items()} | {
        f"folds/accuracy/{i}": accuracy for i, accuracy in enumerate(each)
    }


def true_worth(
    context: Context, rows: list[SourceRow]
) -> Callable[[dict[str, Any], str, bool], float] | None:
    """What a response is worth by the judge, to report accuracy against the truth; None where rows lack what it needs."""
    judge = context.judge()
    if judge is None or not all("row" in located.row for located in rows):
        return None
    return lambda row, response, ended: judge(row["row"], response, ended)["score"]
