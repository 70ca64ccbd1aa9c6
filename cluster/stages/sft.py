"""Stage 2: supervised fine-tuning on demonstrations, loss on the assistant's tokens only."""

from __future__ import annotations

from typing import Any

from cluster.context import Context
from cluster.stages.supervised import SupervisedStage
from learners.data.encoding import encode_demonstrations
from learners.data.tokenizer_loading import load_tokenizer


def run(context: Context) -> dict[str, Any]:
    config, paths = context.config, context.run.paths
    folder = context.run.stage("sft")
    base = context.run.initial_policy()
    rows, reader = context.read("demonstrations")
    tokenizer = load_tokenizer(base, config.model)
    data = encode_demonstrations(rows, tokenizer, config.model.context, reader, config.sft.validation_share)
    data.save(paths.demonstration_tokens)
    learners = context.fleets.learners()
    stage = SupervisedStage(
        context,
        "sft",
        learners,
        total_steps=learners.start_sft(base, config.sft, folder, config.seed),
        checkpoint_every=config.sft.checkpoint_every,
        inputs=[base, *context.run.data("demonstrations")],
    )
    results = stage.run()
    # From here on an endpoint of this run has something to serve.
    context.run.publish("sft", 0, paths.stage("sft").model)
    return results
