"""Stage 2: supervised fine-tuning on demonstrations, loss on the assistant's tokens only."""

from __future__ import annotations

from typing import Any

from cluster.context import Context
from cluster.stages.supervised import supervise
from learners.data.encoding import encode_demonstrations
from learners.models import load_tokenizer


def run(context: Context) -> dict[str, Any]:
    config, folder = context.config, context.run.stage("sft")
    base, (rows, reader) = context.run.policy_path(), context.read("demonstrations")
    tokenizer = load_tokenizer(base, config.model)
    data = encode_demonstrations(
        rows, tokenizer, config.model.context, reader, config.sft.validation_share, config.seed
    )
    data.save(folder / "demonstrations.npz")
    learners = context.fleets.learners()
    total = learners.all("start_sft", base, config.sft, folder, config.seed)[0]
    consumed = [base, *context.run.data("demonstrations")]
    found = supervise(context, "sft", learners, total, config.sft.checkpoint_every, consumed)
    context.run.promote("sft", 0, folder / "model")
    return found
