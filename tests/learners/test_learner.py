"""Real DeepSpeed ranks: the update must not depend on how it is sharded, and a restored state must go on the same."""

import numpy as np
import pytest

from learners.config import LearnerConfig
from tests.learners import worlds


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("learner")
    worlds.make_files(path)
    return path


def learner(ranks, stage, tokens=512):
    return LearnerConfig(ranks=ranks, zero_stage=stage, micro_batch_tokens=tokens, dtype="float32")


def largest_difference(a, b):
    assert a.keys() == b.keys()
    return max(float(np.abs(a[n] - b[n]).max() / (np.abs(a[n]).max() + 1e-12)) for n in a)


def both(actor, folder, **changes):
    return worlds.pretrain(actor, folder), worlds.ppo(actor, folder, **changes)


@pytest.mark.parametrize(("ranks", "stage", "tokens"), [(2, 2, 512), (2, 3, 64)])
def test_updates_do_not_depend_on_ranks_zero_stage_or_micro_batch(folder, ranks, stage, tokens):
    (_, lm_one, lm_loss_one), (_, ppo_one) = worlds.run_ranks(both, folder, learner(1, 0))
    (_, lm_many, lm_loss_many), (metrics, ppo_many) = worlds.run_ranks(both, folder, learner(ranks, stage, tokens))
    assert largest_difference(lm_one, lm_many) < 5e-6
    assert abs(lm_loss_one["loss/validation"] - lm_loss_many["loss/validation"]) < 1e-5
    assert largest_difference(ppo_one, ppo_many) < 5e-6
    assert metrics[0]["val/first_ratio_error"] < 1e-5
