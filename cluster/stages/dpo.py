"""Direct preference optimization: a policy from rankings alone, without a reward model and without sampling.

It starts from the SFT policy, which is the reference too, and learns from the rankings that the reward
model learns from. reference.npy has the reference's log-probability of every ranked response.
"""

from __future__ import annotations

from typing import Any

from cluster.context import Context
from cluster.stages.reward import oracle_score
from cluster.stages.supervised import SupervisedStage
from common.run_paths import TrainingInputPaths
from learners.data.ranking_groups import encode_rankings
from learners.data.tokenizer_loading import load_tokenizer


def run(context: Context) -> dict[str, Any]:
    config, paths = context.config, context.run.paths
    folder = context.run.stage("dpo")
    policy = context.run.model("sft")
    rows, reader = context.read("rankings")
    data = encode_rankings(
        rows,
        load_tokenizer(policy, config.model),
        config.model.context,
        reader,
        config.dpo.validation_share,
        oracle_score(context),
    )
    data.save(TrainingInputPaths(folder).ranking_tokens)
    learners = context.fleets.learners()
    total_steps = learners.start_dpo(policy, config.dpo, folder, config.seed)
    # Before a checkpoint is loaded: the learners hold the reference now.
    if paths.dpo_reference.exists():
        learners.load_reference(paths.dpo_reference)
    else:
        learners.measure_reference(paths.dpo_reference)
    stage = SupervisedStage(
        context,
        "dpo",
        learners,
        total_steps=total_steps,
        checkpoint_every=config.dpo.checkpoint_every,
        inputs=[policy, *context.run.data("rankings")],
    )
    results = stage.run()
    context.run.publish("dpo", total_steps, paths.stage("dpo").model)
    return results
