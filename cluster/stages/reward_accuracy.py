"""Accuracy of this reward model, and of others, on the held-out pairs of each part of the rankings: of each
round, for example, and in it each group of labelers (`reward_model.accuracy_by`, `compare`).

On what another policy writes a reward model can be worse than a coin while it is right about its own training
distribution; one figure over all pairs does not show that.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.context import Context
from cluster.run.progress import progress
from common.files import remove, write_json
from common.run_paths import TrainingInputPaths
from learners.data.datasets import RankingData
from learners.data.records import RankingRecord
from learners.supervised.agreement import PairAgreement

OWN = "this model"
SEPARATOR = ", "


def tag_of(keys: Sequence[str], record: RankingRecord) -> str:
    """The part that a ranking belongs to: "round 2, group simulated"; "-" for no value."""
    parts = []
    for key in keys:
        value = record.value_of(key)
        text = "-" if value is None else str(value)
        parts.append(f"{key} {text.replace(SEPARATOR, ' ')}")
    return SEPARATOR.join(parts)


def write_accuracies(context: Context, policy: Path, data: RankingData) -> None:
    """Writes reward/accuracy.json: a row for each model, a column for each part. `data` has a tag for each
    group, and the model of the stage is exported."""
    config, paths = context.config.reward_model, context.run.paths
    models = {one.name: Path(one.path) for one in config.compare} | {OWN: paths.stage("reward").model}
    folder = paths.reward_accuracy_inputs
    data.save(TrainingInputPaths(folder).ranking_tokens)
    tags_P = data.tags_G[data.is_validation_G]
    learners, rows = context.fleets.learners(), []
    with progress("accuracy", total=len(models)) as bar:
        for name, model in models.items():
            settings = config.model_copy(update={"path": str(model)})
            learners.start_reward_model(policy, settings, folder, context.config.seed)
            rows.append({"name": name, "cells": cells(learners.pair_agreement(), tags_P)})
            bar.advance(1, name)
    write_json(paths.reward_accuracy, {"columns": columns(tags_P), "rows": rows})
    remove(folder)


def columns(tags_P: np.ndarray) -> list[str]:
    """The parts by the first key, and those by the first and each other key where that is finer."""
    parts = [tag.split(SEPARATOR) for tag in set(tags_P.tolist())]
    coarse = sorted({one[0] for one in parts})
    found = list(coarse)
    for key in range(1, len(parts[0])):
        finer = sorted({SEPARATOR.join((one[0], one[key])) for one in parts})
        if len(finer) > len(coarse):
            found += finer
    return found


def cells(agreement: PairAgreement, tags_P: np.ndarray) -> list[dict[str, Any]]:
    """For each column the accuracy against the labelers with its interval, and against the oracle where
    that is known. `agreement` and `tags_P` are of the same held-out prompts."""
    counts = agreement.to_array()
    found = []
    for column in columns(tags_P):
        wanted = set(column.split(SEPARATOR))
        inside = [wanted <= set(tag.split(SEPARATOR)) for tag in tags_P.tolist()]
        part = PairAgreement.from_array(counts[:, np.array(inside)])
        low, high = part.labelers.interval()
        cell = {
            "value": part.labelers.rate(),
            "low": max(0.0, low),
            "high": min(1.0, high),
            "pairs": int(part.labelers.total_G.sum()),
            "prompts": int(sum(inside)),
        }
        if part.oracle.total_G.sum():
            cell |= {"truth": part.oracle.rate(), "truth_pairs": int(part.oracle.total_G.sum())}
        found.append(cell)
    return found
