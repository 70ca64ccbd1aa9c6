"""Stage 2: supervised fine-tuning on demonstrations, loss on the assistant's tokens only."""

from __future__ import annotations

from typing import Any

from cluster.context import Context
from cluster.stages.supervised import supervise
from learners.datasets import check_demonstration, encode_demonstrations, read_rows
from learners.errors import UserError
from learners.models import load_tokenizer


def run(context: Context) -> dict[str, Any]:
    config, folder = context.config, context.run.stage("sft")
    base, path = context.run.policy_path(), context.run.data("demonstrations")
    rows = read_rows(path, check_demonstration)
    if len(rows) < 2:
        raise UserError(f"{path}: found one row; at least two are needed, one of them for validation")
    data = encode_demonstrations(rows, load_tokenizer(base), config.model.context, path)
    data.save(folder / "demonstrations.npz")
    learners = context.fleets.learners()
    total = learners.all("start_sft", base, config.sft, folder, config.seed)[0]
    found = supervise(context, "sft", learners, total, config.sft.save_every, [base, path])
    context.run.promote("sft", 0, folder / "model")
    return found
