"""Goldens from hand computation and from the literature."""

import math

import pytest
import torch

from learners import objectives


def test_whitening_without_mean_shift_matches_the_published_values():
    # "The N implementation details of RLHF with PPO", detail 18.
    x = torch.tensor([[1.2, 1.3, 1.4], [1.5, 1.6, 1.7], [1.8, 1.9, 2.0]])
    expected = torch.tensor([[0.0508, 0.4381, 0.8254], [1.2127, 1.6, 1.9873], [2.3746, 2.7619, 3.1492]])
    found = objectives.masked_whiten(x, torch.ones_like(x), shift_mean=False)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_whitening_ignores_masked_positions():
    x, mask = torch.tensor([[1.0, 3.0, 99.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    found = objectives.masked_whiten(x, mask)
    torch.testing.assert_close(found[0, :2], torch.tensor([-1.0, 1.0]))


def test_gae_equals_a_hand_computation():
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.5, 0.5]])
    advantages, returns = objectives.gae(rewards, values, torch.ones(1, 3), gamma=1.0, lam=0.95)
    # delta = [0, 0, 0.5]; A = [0.95^2, 0.95, 1] x 0.5
    torch.testing.assert_close(advantages, torch.tensor([[0.45125, 0.475, 0.5]]))
    torch.testing.assert_close(returns, advantages + 0.5)


def test_gae_skips_tokens_of_the_environment():
    mask = torch.tensor([[1.0, 0.0, 0.0, 1.0, 1.0]])
    rewards = torch.tensor([[0.0, 7.0, 7.0, 0.0, 1.0]]) * mask
    values = torch.tensor([[0.5, 9.0, 9.0, 0.5, 0.5]])
    advantages, returns = objectives.gae(rewards, values, mask, gamma=1.0, lam=0.95)
    torch.testing.assert_close(advantages, torch.tensor([[0.45125, 0.0, 0.0, 0.475, 0.5]]))
    assert returns[0, 1] == returns[0, 2] == 0


def test_gae_bootstraps_a_truncated_response():
    zero, values = torch.zeros(1, 1), torch.tensor([[0.5]])
    advantages, _ = objectives.gae(zero, values, torch.ones(1, 1), gamma=0.9, lam=0.95, bootstrap_B=torch.tensor([2.0]))
    torch.testing.assert_close(advantages, torch.tensor([[0.9 * 2.0 - 0.5]]))


def test_gae_padding_does_not_change_a_row():
    rewards, values = torch.tensor([[0.0, 1.0, 0.0, 0.0]]), torch.tensor([[0.3, 0.2, 5.0, 5.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    padded, _ = objectives.gae(rewards, values, mask, 1.0, 0.9)
    plain, _ = objectives.gae(rewards[:, :2], values[:, :2], mask[:, :2], 1.0, 0.9)
    torch.testing.assert_close(padded[:, :2], plain)


@pytest.mark.parametrize(("estimator", "expected"), [("k1", 0.5), ("k2", 0.125), ("k3", math.exp(-0.5) - 0.5)])
def test_kl_estimators(estimator, expected):
    found = objectives.kl_estimate(torch.tensor(-1.0), torch.tensor(-1.5), estimator)
    torch.testing.assert_close(found, torch.tensor(expected))


def test_score_lands_on_the_last_response_token_and_kl_on_every_one():
    logprobs, reference = torch.tensor([[-1.0, -1.0, 0.0]]), torch.tensor([[-1.5, -2.0, 0.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    found = objectives.token_rewards(torch.tensor([3.0]), logprobs, reference, mask, kl_coef=0.1)
    torch.testing.assert_close(found, torch.tensor([[-0.05, 3.0 - 0.1, 0.0]]))


def test_policy_loss_clips_only_where_it_hurts():
    old = torch.zeros(1, 4)
    ratio = torch.tensor([[1.5, 1.5, 0.5, 0.5]])
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    loss, metrics = objectives.policy_loss(ratio.log(), old, advantages, torch.ones(1, 4), 0.2, 0.2)
    # min(ratio A, clip A): 1.2, -1.5, 0.5, -0.8
    torch.testing.assert_close(loss, torch.tensor(-(1.2 - 1.5 + 0.5 - 0.8) / 4))
    assert metrics["clipfrac"] == 2


def test_policy_loss_of_equal_policies_is_minus_the_mean_advantage():
    logprobs, advantages = torch.tensor([[-0.3, -2.0]]), torch.tensor([[2.0, 4.0]])
    loss, metrics = objectives.policy_loss(logprobs, logprobs, advantages, torch.ones(1, 2), 0.2, 0.2)
    torch.testing.assert_close(loss, torch.tensor(-3.0))
    assert metrics["approxkl"] == 0
    assert metrics["ratio"] == 2


def test_losses_add_up_over_micro_batches_given_the_global_count():
    torch.manual_seed(0)
    new, old, advantages = torch.randn(3, 6, 5)
    mask = (torch.rand(6, 5) > 0.3).float()
    whole, _ = objectives.policy_loss(new, old, advantages, mask, 0.2, 0.2)
    parts = [
        objectives.policy_loss(new[s], old[s], advantages[s], mask[s], 0.2, 0.2, denominator=float(mask.sum()))[0]
        for s in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_value_loss_takes_the_worse_of_clipped_and_plain():
    loss, metrics = objectives.value_loss(
        torch.tensor([[1.0]]), torch.tensor([[0.0]]), torch.tensor([[1.0]]), torch.ones(1, 1), clip=0.2
    )
    torch.testing.assert_close(loss, torch.tensor(0.5 * 0.8**2))
    assert metrics["clipfrac"] == 1


def test_ranking_loss_is_the_mean_over_all_pairs():
    scores = torch.tensor([2.0, 1.0, 0.0])
    expected = -(math.log(1 / (1 + math.exp(-1))) * 2 + math.log(1 / (1 + math.exp(-2)))) / 3
    torch.testing.assert_close(objectives.ranking_loss(scores, [1, 2, 3]), torch.tensor(expected))


def test_ranking_loss_does_not_change_when_all_scores_shift():
    scores = torch.tensor([0.3, -1.0, 2.0, 0.1])
    torch.testing.assert_close(
        objectives.ranking_loss(scores + 100.0, [2, 4, 1, 3]),
        objectives.ranking_loss(scores, [2, 4, 1, 3]),
        rtol=1e-4,
        atol=1e-5,
    )


def test_ranking_loss_drops_ties_and_is_zero_when_all_tie():
    scores = torch.tensor([1.0, 0.0, 5.0], requires_grad=True)
    tied = objectives.ranking_loss(scores, [1, 2, 1])
    torch.testing.assert_close(tied, -(torch.nn.functional.logsigmoid(torch.tensor([1.0, 5.0]))).mean())
    objectives.ranking_loss(scores, [1, 1, 1]).backward()
    assert scores.grad.abs().sum() == 0


def test_ranking_loss_is_finite_at_huge_gaps():
    assert torch.isfinite(objectives.ranking_loss(torch.tensor([-1e4, 1e4]), [1, 2]))


def test_token_logprobs_divide_logits_by_the_temperature():
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    found, entropy = objectives.token_logprobs(logits, torch.tensor([2]), temperature=0.5, with_entropy=True)
    p = torch.softmax(logits / 0.5, -1)[0]
    torch.testing.assert_close(found, p[2:].log())
    torch.testing.assert_close(entropy, -(p * p.log()).sum()[None])
