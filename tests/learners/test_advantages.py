"""Advantages without a critic, and what surrounds them, by hand computation."""

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from learners import objectives

# Five responses of two tokens, the score on the last; prompts 7 (two responses), 3 (two) and 9
# (one), mixed up.
SCORES = tensor([1.0, 2.0, 0.0, 6.0, 4.0])
GROUPS = tensor([7, 3, 7, 3, 9])
MASK = torch.ones(5, 2)
REWARDS = torch.stack([torch.zeros(5), SCORES], dim=1)


def rows(*values):
    return tensor(values)[:, None].expand(-1, 2)


def test_grpo_scales_by_the_deviation_of_the_group():
    half = 0.5**0.5  # (1 - 0.5) / (deviation of 1 and 0)
    assert_close(
        objectives.grpo(REWARDS, MASK, GROUPS, 1.0), rows(half, -half, -half, half, 0.0), rtol=1e-5, atol=1e-6
    )


def test_dr_grpo_leaves_out_the_scale():
    assert_close(objectives.dr_grpo(REWARDS, MASK, GROUPS, 1.0), rows(0.5, -2.0, -0.5, 2.0, 0.0))


def test_rloo_compares_with_the_mean_of_the_others():
    three = tensor([[2.0], [2.0], [5.0]])
    assert_close(
        objectives.rloo(three, torch.ones(3, 1), tensor([0, 0, 0]), 1.0), tensor([[-1.5], [-1.5], [3.0]])
    )
    assert_close(objectives.rloo(REWARDS, MASK, GROUPS, 1.0), rows(1.0, -4.0, -1.0, 4.0, 0.0))


def test_group_baselines_count_the_kl_penalty_inside_the_reward():
    penalized = REWARDS - tensor([[0.5, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    assert_close(objectives.rloo(penalized, MASK, GROUPS, 1.0)[0], tensor([0.5, 0.5]))


def test_reinforce_is_the_discounted_sum_of_later_rewards():
    rewards, mask = tensor([[1.0, 9.0, 2.0, 4.0]]), tensor([[1.0, 0.0, 1.0, 1.0]])
    result = objectives.reinforce(rewards * mask, mask, tensor([0]), 0.5)
    assert_close(result, tensor([[1 + 0.5 * 2 + 0.25 * 4, 0.0, 2 + 0.5 * 4, 4.0]]))


def test_reinforce_pp_whitens_over_the_batch():
    result = objectives.reinforce_pp(REWARDS, MASK, GROUPS, 1.0)
    assert_close(
        result, rows(*((SCORES - SCORES.mean()) / SCORES.std(correction=0)).tolist()), rtol=1e-5, atol=1e-5
    )


def test_reinforce_pp_baseline_whitens_after_the_group_mean():
    result = objectives.reinforce_pp_baseline(REWARDS, MASK, GROUPS, 1.0)
    deviation = (8.5 / 5) ** 0.5  # of 0.5, -2, -0.5, 2, 0
    assert_close(result, rows(*(x / deviation for x in (0.5, -2.0, -0.5, 2.0, 0.0))), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["grpo", "dr_grpo", "rloo", "reinforce", "reinforce_pp", "reinforce_pp_baseline"]
)
def test_padding_gets_no_advantage_and_changes_none(name):
    advantage = getattr(objectives, name)
    padded = advantage(
        torch.cat([REWARDS, torch.zeros(5, 3)], 1), torch.cat([MASK, torch.zeros(5, 3)], 1), GROUPS, 1.0
    )
    assert_close(padded[:, :2], advantage(REWARDS, MASK, GROUPS, 1.0))
    assert not padded[:, 2:].any()


def test_groups_of_equal_scores_have_no_signal():
    scores, groups = tensor([1.0, 0.5, 1.0, 0.7, 3.0]), tensor([4, 2, 4, 2, 8])
    assert objectives.groups_with_signal(scores, groups).tolist() == [False, True, False, True, False]


def test_the_overlong_penalty_falls_linearly_over_the_buffer():
    result = objectives.overlong_penalty(tensor([5, 16, 18, 20, 24]), longest=20, buffer=4)
    assert result.tolist() == [0, 0, -0.5, -1, -1]


@pytest.mark.parametrize(
    ("kl", "expected"), [(6.0, 0.1), (6.6, 0.101), (100.0, 0.102), (0.0, 0.098), (5.4, 0.099)]
)
def test_the_adaptive_kl_coefficient_is_that_of_ziegler_2019(kl, expected):
    # Ziegler et al. 2019: coef * (1 + clip(kl / target - 1, -0.2, 0.2) * n / horizon), here n /
    # horizon = 0.1
    assert objectives.adapted_kl_coef(0.1, kl, target=6.0, horizon=2560, samples=256) == pytest.approx(
        expected
    )
