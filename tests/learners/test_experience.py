"""What an iteration makes of a scored batch before any update."""

import numpy as np
import pytest
import torch

from common.errors import UserError
from learners.data.samples import Samples, offsets_of
from learners.rl.config import PPOConfig
from learners.rl.experience import Experience


def batch(responses, scores, prompts, ended=None):
    """One prompt token each, the given numbers of response tokens; engine and reference logprobs -1 and -2."""
    lengths = np.array(responses) + 1
    total = int(lengths.sum())
    samples = Samples(
        np.arange(total, dtype=np.int32),
        offsets_of(lengths),
        np.ones(len(lengths), np.int32),
        np.full(total, -1, np.float32),
        np.zeros(total, np.int32),
        np.array(prompts),
        np.array(ended or [True] * len(lengths)),
    )
    return samples, (np.array(scores, dtype=np.float32), np.full(total, -2, np.float32))


def config(**changes):
    return PPOConfig(
        **{"advantage": "reinforce", "prompts": 2, "minibatches": 1, "missing_eos_penalty": 0.0} | changes
    )


def shaped(settings, *args, kl_coef=0.0):
    samples, scored = batch(*args)
    experience = Experience.gather([samples, scored], 1, settings)
    experience.old_BT = experience.behaviour_BT
    return experience, experience.shape(settings, kl_coef)


def test_dynamic_sampling_keeps_the_first_prompts_whose_scores_differ():
    parts = batch([1, 2, 3, 1], [1, 1, 0, 1], [5, 5, 8, 8]), batch([2, 2, 4, 1], [0, 1, 3, 4], [1, 1, 2, 2])
    settings = config(dynamic_sampling=1, advantage="rloo")
    experience = Experience.gather([p[0] for p in parts] + [p[1] for p in parts], 2, settings)
    assert experience.samples.prompt_ids_B.tolist() == [8, 8, 1, 1]
    assert experience.scores_B.tolist() == [0, 1, 0, 1]
    assert experience.lengths_B.tolist() == [3, 1, 2, 2]
    assert torch.equal(experience.ref_BT, -2 * experience.mask_BT)


def test_without_any_signal_nothing_is_dropped():
    samples, scored = batch([1, 2], [1, 1], [5, 5])
    assert Experience.gather([samples, scored], 1, config(dynamic_sampling=3)).samples.size == 2


def test_an_iteration_whose_samples_were_all_dropped_is_told():
    samples, (scores, ref) = batch([1], [1], [0])
    empty = Samples.concat([samples.select([])])
    with pytest.raises(UserError, match="without a single scored response"):
        Experience.gather([empty, (scores[:0], ref[:0])], 1, config())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [[5.0, 0, 0, 0], [1.0, 1, 1, 1]]),
        ({"missing_eos_penalty": 3.0}, [[5.0, 0, 0, 0], [-2.0, -2, -2, -2]]),
        (
            {"overlong_buffer": 2, "max_response_tokens": 5, "overlong_penalty": 4.0},
            [[5.0, 0, 0, 0], [-1.0, -1, -1, -1]],
        ),
    ],
)
def test_scores_are_penalized_before_they_become_advantages(changes, expected):
    experience, _ = shaped(config(**changes), [1, 4], [5.0, 1.0], [0, 1], [True, False])
    torch.testing.assert_close(experience.advantages_BT, torch.tensor(expected))


@pytest.mark.parametrize(
    ("bootstrap", "returns"), [(False, [[2.0, 0.0], [1.0, 1.0]]), (True, [[2.0, 0.0], [8.0, 8.0]])]
)
def test_a_response_that_was_cut_may_be_worth_what_the_critic_expects_after_it(bootstrap, returns):
    settings = config(advantage="gae", lam=1.0, bootstrap_truncated=bootstrap)
    samples, scored = batch([1, 2], [2.0, 1.0], [0, 1], [True, False])
    experience = Experience.gather([samples, scored], 1, settings)
    experience.old_BT, experience.after_B = experience.behaviour_BT, torch.tensor([5.0, 7.0])
    experience.shape(settings, 0.0)
    torch.testing.assert_close(experience.returns_BT, torch.tensor(returns))


@pytest.mark.parametrize(("place", "expected"), [("reward", 1 - 0.5 * 3), ("loss", 1.0)])
def test_the_kl_penalty_is_in_the_reward_or_left_to_the_loss(place, expected):
    experience, metrics = shaped(config(kl_in=place), [3], [1.0], [0], kl_coef=0.5)
    assert experience.advantages_BT[0, 0] == expected
    assert metrics["objective/kl"] == 3
    assert metrics["objective/non_score_reward"] == -1.5


def test_the_correction_gives_weights_and_the_mismatch_is_always_told():
    plain, metrics = shaped(config(), [2], [1.0], [0])
    assert plain.weights_BT is None
    assert metrics["mismatch/kl"] == 0
    samples, scored = batch([2], [1.0], [0])
    settings = config(correction="tis", correction_high=1.5)
    stale = Experience.gather([samples, scored], 1, settings)
    stale.old_BT = torch.tensor([[0.0, -3.0]])
    metrics = stale.shape(settings, 0.0)
    torch.testing.assert_close(stale.weights_BT, torch.tensor([[1.5, np.exp(-2.0)]]), check_dtype=False)
    assert metrics["mismatch/max"] == 2
    assert metrics["mismatch/weight"] == pytest.approx((1.5 + np.exp(-2)) / 2)
