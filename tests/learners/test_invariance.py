"""Real DeepSpeed ranks: the update must not depend on how the work is sharded, cut into
micro-batches or packed.

Every variant takes two updates from the same start, in float32, and every parameter is compared
with one rank, ZeRO 0, everything padded in one micro-batch.
"""

import numpy as np
import pytest

from learners.config import LearnerConfig
from tests.learners import fixtures

# ZeRO stage, tokens of a micro-batch, packing
VARIANTS = [(0, 4096, False), (0, 64, False), (0, 4096, True), (0, 128, True)]
SHARDED = [
    (stage, tokens, packing) for stage in (0, 1, 2, 3) for tokens, packing in ((4096, False), (64, True))
]
PPO = {"minibatches": 2, "epochs": 1, "ptx_coef": 0.5, "ptx_tokens": 64}


def updates(actor, folder, variants):
    """Parameters after two updates of each task, by variant."""
    results = {}
    for stage, tokens, packing in variants:
        changes = {"zero_stage": stage, "micro_batch_tokens": tokens, "packing": packing}
        actor.config = actor.config.model_copy(update=changes)
        language = fixtures.pretrain(actor, folder, steps=2)
        ranking = fixtures.reward(actor, folder, steps=2)
        metrics, ppo = fixtures.ppo(actor, folder, iterations=1, **PPO)
        grouped = {
            "responses": 2,
            "prompts": 6,
            "aggregation": "seq_mean_token_mean",
            "ratio": "sequence",
            "ema": 0.5,
        }
        _, grpo = fixtures.ppo(actor, folder, iterations=1, advantage="grpo", kl_in="loss", **(PPO | grouped))
        results[stage, tokens, packing] = (
            {"language": language[1], "ranking": ranking, "ppo": ppo, "grpo": grpo},
            metrics[0],
        )
    return results


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("invariance")
    fixtures.make_files(folder)
    config = LearnerConfig(ranks=1, zero_stage=0, dtype="float32")
    one = fixtures.run_ranks(updates, folder, config, VARIANTS)
    two = fixtures.run_ranks(updates, folder, config.model_copy(update={"ranks": 2}), SHARDED)
    return {(1, *v): r for v, r in one.items()} | {(2, *v): r for v, r in two.items()}


def largest_difference(a, b):
    """Over all parameters: largest difference of a tensor's entries, relative to its largest
    entry."""
    assert a.keys() == b.keys()
    return max(float(np.abs(a[n] - b[n]).max() / np.abs(b[n]).max()) for n in a)


@pytest.mark.parametrize("task", ["language", "ranking", "ppo", "grpo"])
@pytest.mark.parametrize("variant", [(1, *v) for v in VARIANTS[1:]] + [(2, *v) for v in SHARDED])
def test_updates_do_not_depend_on_sharding_micro_batches_packing(runs, variant, task):
    reference = runs[1, *VARIANTS[0]][0]
    assert largest_difference(runs[variant][0][task], reference[task]) < 1e-6


def test_the_measure_sees_another_update(runs):
    tasks = runs[1, *VARIANTS[0]][0]
    assert largest_difference(tasks["grpo"], {n: tasks["ppo"][n] for n in tasks["grpo"]}) > 1e-4


def test_the_first_minibatch_has_ratio_one_and_little_padding(runs):
    for (_, _, _, packing), (_, metrics) in runs.items():
        assert metrics["val/first_ratio_error"] < 1e-5
        assert metrics["batch/padding"] < (0.25 if packing else 0.5)
