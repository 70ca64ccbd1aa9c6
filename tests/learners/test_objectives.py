"""Goldens from hand computation and from the literature."""

import math

import numpy as np
import pytest
import torch

from learners import objectives


def test_whitening_without_mean_shift_has_the_published_values():
    # "The N implementation details of RLHF with PPO", detail 18.
    x = torch.tensor([[1.2, 1.3, 1.4], [1.5, 1.6, 1.7], [1.8, 1.9, 2.0]])
    expected = torch.tensor([[0.0508, 0.4381, 0.8254], [1.2127, 1.6, 1.9873], [2.3746, 2.7619, 3.1492]])
    result = objectives.masked_whiten(x, torch.ones_like(x), shift_mean=False)
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)


def test_whitening_ignores_masked_positions():
    x, mask = torch.tensor([[1.0, 3.0, 99.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    result = objectives.masked_whiten(x, mask)
    torch.testing.assert_close(result[0, :2], torch.tensor([-1.0, 1.0]))


def test_gae_equals_a_hand_computation():
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.5, 0.5]])
    advantages, returns = objectives.gae(rewards, values, torch.ones(1, 3), gamma=1.0, lam=0.95)
    # delta = [0, 0, 0.5]; A = [0.95^2, 0.95, 1] x 0.5
    torch.testing.assert_close(advantages, torch.tensor([[0.45125, 0.475, 0.5]]))
    torch.testing.assert_close(returns, advantages + 0.5)


def test_gae_equals_the_sum_of_discounted_errors():
    # Schulman et al. 2015, Eq. 16, written out
    torch.manual_seed(0)
    rewards, values = torch.randn(2, 3, 7, dtype=torch.float64)
    gamma, lam = 0.9, 0.8
    after = torch.cat([values[:, 1:], torch.zeros(3, 1, dtype=torch.float64)], 1)
    errors = rewards + gamma * after - values
    expected = torch.stack(
        [sum((gamma * lam) ** k * errors[:, t + k] for k in range(7 - t)) for t in range(7)], 1
    )
    result, returns = objectives.gae(rewards, values, torch.ones(3, 7, dtype=torch.float64), gamma, lam)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(returns, expected + values)


def test_gae_skips_tokens_of_the_environment():
    mask = torch.tensor([[1.0, 0.0, 0.0, 1.0, 1.0]])
    rewards = torch.tensor([[0.0, 7.0, 7.0, 0.0, 1.0]]) * mask
    values = torch.tensor([[0.5, 9.0, 9.0, 0.5, 0.5]])
    advantages, returns = objectives.gae(rewards, values, mask, gamma=1.0, lam=0.95)
    torch.testing.assert_close(advantages, torch.tensor([[0.45125, 0.0, 0.0, 0.475, 0.5]]))
    assert returns[0, 1] == returns[0, 2] == 0


def test_gae_bootstraps_a_truncated_response():
    zero, values = torch.zeros(1, 1), torch.tensor([[0.5]])
    advantages, _ = objectives.gae(
        zero, values, torch.ones(1, 1), gamma=0.9, lam=0.95, bootstrap_B=torch.tensor([2.0])
    )
    torch.testing.assert_close(advantages, torch.tensor([[0.9 * 2.0 - 0.5]]))


def test_gae_equals_rllib_for_ended_and_truncated_responses():
    from ray.rllib.utils.postprocessing.value_predictions import compute_value_targets

    rng, lengths = np.random.default_rng(0), [1, 4, 9, 9]
    rewards, values, after = rng.normal(size=(4, 9)), rng.normal(size=(4, 9)), np.array([0.0, 0.0, 0.0, 1.5])
    mask = np.arange(9) < np.array(lengths)[:, None]
    inputs = [torch.tensor(x) for x in (rewards * mask, values, mask * 1.0)]
    _, returns = objectives.gae(*inputs, gamma=0.9, lam=0.8, bootstrap_B=torch.tensor(after))
    for b, length in enumerate(lengths):  # one step more, whose value is that after a cut
        last, cut = np.arange(length + 1) == length - 1, after[b] != 0
        row = np.append(values[b, :length], after[b]), np.append(rewards[b, :length], 0.0)
        targets = compute_value_targets(*row, last * (not cut), last * cut, 0.9, 0.8)
        np.testing.assert_allclose(returns[b, :length], targets[:length], rtol=1e-5)


def test_gae_padding_does_not_change_a_row():
    rewards, values = torch.tensor([[0.0, 1.0, 0.0, 0.0]]), torch.tensor([[0.3, 0.2, 5.0, 5.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    padded, _ = objectives.gae(rewards, values, mask, 1.0, 0.9)
    plain, _ = objectives.gae(rewards[:, :2], values[:, :2], mask[:, :2], 1.0, 0.9)
    torch.testing.assert_close(padded[:, :2], plain)


@pytest.mark.parametrize(
    ("estimator", "expected"), [("k1", 0.5), ("k2", 0.125), ("k3", math.exp(-0.5) - 0.5)]
)
def test_kl_estimators(estimator, expected):
    result = objectives.kl_estimate(torch.tensor(-1.0), torch.tensor(-1.5), estimator)
    torch.testing.assert_close(result, torch.tensor(expected))


def test_the_score_is_on_the_last_token_and_the_kl_on_each():
    logprobs, reference = torch.tensor([[-1.0, -1.0, 0.0]]), torch.tensor([[-1.5, -2.0, 0.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    result = objectives.token_rewards(torch.tensor([3.0]), logprobs, reference, mask, kl_coef=0.1)
    torch.testing.assert_close(result, torch.tensor([[-0.05, 3.0 - 0.1, 0.0]]))


def test_policy_loss_clips_only_where_it_hurts():
    old = torch.zeros(1, 4)
    ratio = torch.tensor([[1.5, 1.5, 0.5, 0.5]])
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    loss, metrics = objectives.policy_loss(ratio.log(), old, advantages, torch.ones(1, 4), 0.2, 0.2)
    # min(ratio A, clip A): 1.2, -1.5, 0.5, -0.8
    torch.testing.assert_close(loss, torch.tensor(-(1.2 - 1.5 + 0.5 - 0.8) / 4))
    assert metrics["clipfrac"] == 2


def test_clip_higher_lets_the_ratio_rise_further():
    one = torch.ones(1, 1)
    loss, _ = objectives.policy_loss(torch.tensor([[1.25]]).log(), 0 * one, one, one, 0.2, 0.28)
    torch.testing.assert_close(loss, torch.tensor(-1.25))


def test_dual_clip_bounds_the_loss_of_a_bad_likely_token():
    ratio, advantages = torch.tensor([[10.0, 10.0, 2.0]]), torch.tensor([[-1.0, 1.0, -1.0]])
    loss, _ = objectives.policy_loss(
        ratio.log(), torch.zeros(1, 3), advantages, torch.ones(1, 3), 0.2, 0.2, dual_clip=3.0
    )
    torch.testing.assert_close(loss, torch.tensor((3.0 - 1.2 + 2.0) / 3))


AGGREGATED = {
    "token_mean": (1 + 2 + 3 + 10) / 4,
    "seq_mean_token_mean": (2 + 10) / 2,
    "seq_mean_token_sum": (6 + 10) / 2,
    "fixed_length": (6 + 10) / (2 * 4),
}


@pytest.mark.parametrize(("aggregation", "expected"), AGGREGATED.items())
def test_aggregations(aggregation, expected):
    x = torch.tensor([[1.0, 2.0, 3.0, 99.0], [10.0, 99.0, 99.0, 99.0], [99.0, 99.0, 99.0, 99.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(objectives.aggregate(x, mask, aggregation), torch.tensor(float(expected)))


@pytest.mark.parametrize("aggregation", AGGREGATED)
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_gradients_add_up_over_micro_batches_by_global_size(aggregation, ratio):
    torch.manual_seed(0)
    new, old, advantages, weights = torch.randn(4, 6, 5)
    mask = (torch.rand(6, 5) > 0.3).float()

    def gradient(rows, denominator=None):
        part = new[rows].clone().requires_grad_()
        loss, _ = objectives.policy_loss(
            part,
            old[rows],
            advantages[rows],
            mask[rows],
            0.2,
            0.3,
            3.0,
            weights[rows].abs(),
            aggregation,
            ratio,
            denominator,
        )
        loss.backward()
        return part.grad

    size = objectives.aggregation_size(mask, aggregation)
    parts = [gradient(slice(a, b), size) for a, b in ((0, 1), (1, 4), (4, 6))]
    torch.testing.assert_close(torch.cat(parts), gradient(slice(0, 6)))


def test_the_sequence_ratio_is_the_geometric_mean():
    logprobs = torch.tensor([[0.2, 0.1, 9.0]]).requires_grad_()
    mask, advantages = torch.tensor([[1.0, 1.0, 0.0]]), torch.ones(1, 3)
    loss, _ = objectives.policy_loss(
        logprobs,
        torch.zeros(1, 3),
        advantages,
        mask,
        0.5,
        0.5,
        aggregation="seq_mean_token_mean",
        ratio="sequence",
    )
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.tensor(-math.exp(0.15)))
    torch.testing.assert_close(logprobs.grad, torch.tensor([[-math.exp(0.15) / 2, -math.exp(0.15) / 2, 0.0]]))


def test_weights_multiply_the_loss_of_a_token():
    logprobs, advantages = torch.zeros(1, 2), torch.tensor([[2.0, 4.0]])
    loss, _ = objectives.policy_loss(
        logprobs, logprobs, advantages, torch.ones(1, 2), 0.2, 0.2, weights_BT=torch.tensor([[0.5, 0.0]])
    )
    torch.testing.assert_close(loss, torch.tensor(-0.5))


RATIOS = torch.tensor([[0.25, 1.0, 4.0]])  # learner over engine, token by token


@pytest.mark.parametrize(
    ("correction", "expected"),
    [
        ("tis", [0.25, 1.0, 2.0]),
        ("icepop", [0.0, 1.0, 0.0]),
        ("sequence", [1.0, 1.0, 1.0]),
        ("decoupled", [0.25, 1.0, 4.0]),
    ],
)
def test_importance_weights(correction, expected):
    result = objectives.importance_weights(
        RATIOS.log(), torch.zeros(1, 3), torch.ones(1, 3), correction, 0.5, 2.0
    )
    torch.testing.assert_close(result, torch.tensor([expected]))


def test_the_sequence_weight_is_truncated_and_blind_to_padding():
    mask = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    ratios = RATIOS.repeat(2, 1)
    result = objectives.importance_weights(ratios.log(), torch.zeros(2, 3), mask, "sequence", 0.5, 2.0)
    torch.testing.assert_close(result[0, 1:], torch.tensor([2.0, 2.0]))
    torch.testing.assert_close(result[1, 0], torch.tensor(0.25))


def test_no_correction_has_no_weights():
    assert objectives.importance_weights(RATIOS.log(), torch.zeros(1, 3), torch.ones(1, 3), "none") is None


def test_decoupled_ppo_without_clipping_is_ppo_on_behaviour():
    # Hilton et al. 2021: (proximal / behaviour) * (new / proximal) * A = (new / behaviour) * A
    behaviour, proximal, new = (
        torch.tensor([[-1.0, -2.0]]),
        torch.tensor([[-1.5, -1.8]]),
        torch.tensor([[-1.4, -1.9]]),
    )
    mask, advantages = torch.ones(1, 2), torch.tensor([[1.0, -2.0]])
    weights = objectives.importance_weights(proximal, behaviour, mask, "decoupled")
    loss, _ = objectives.policy_loss(new, proximal, advantages, mask, 0.2, 0.2, weights_BT=weights)
    torch.testing.assert_close(loss, -((new - behaviour).exp() * advantages).mean())


def test_the_log_linear_proximal_policy_interpolates_by_age():
    behaviour, new = torch.full((1, 3), -2.0), torch.full((1, 3), -1.0, requires_grad=True)
    result = objectives.log_linear_proximal(new, behaviour, torch.tensor([[0.0, 1.0, 3.0]]))
    torch.testing.assert_close(result, torch.tensor([[-2.0, -1.5, -1.25]]))  # a = 0, 1/2, 3/4
    assert not result.requires_grad


def test_the_mismatch_of_engine_and_learner():
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    weights = torch.tensor([[0.25, 0.0, 9.0]])
    result = objectives.mismatch(torch.tensor([[0.25, 4.0, 9.0]]).log(), torch.zeros(1, 3), mask, weights)
    assert result["mean"] == pytest.approx(math.log(4))
    assert result["max"] == pytest.approx(math.log(4))
    assert result["kl"] == pytest.approx((0.25 - 1 + math.log(4) + 4 - 1 - math.log(4)) / 2)
    assert (result["ratio_min"], result["ratio_max"]) == (pytest.approx(0.25), pytest.approx(4))
    assert result["effective"] == pytest.approx(4.25**2 / (2 * (0.0625 + 16)))
    assert result["weight"] == pytest.approx(0.125)


def test_policy_loss_at_ratio_one_is_minus_the_mean_advantage():
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
        objectives.policy_loss(
            new[s], old[s], advantages[s], mask[s], 0.2, 0.2, denominator=float(mask.sum())
        )[0]
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


def test_a_margin_asks_for_more_between_ranks_further_apart():
    result = objectives.ranking_loss(torch.tensor([2.0, 1.0, 0.0]), [1, 2, 4], margin=0.5)
    gaps = torch.tensor([1 - 0.5 * 1, 2 - 0.5 * 3, 1 - 0.5 * 2])
    torch.testing.assert_close(result, -torch.nn.functional.logsigmoid(gaps).mean())


def test_ranking_loss_is_finite_at_huge_gaps():
    assert torch.isfinite(objectives.ranking_loss(torch.tensor([-1e4, 1e4]), [1, 2]))


def test_token_logprobs_divide_logits_by_the_temperature():
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    result, entropy = objectives.token_logprobs(logits, torch.tensor([2]), temperature=0.5, with_entropy=True)
    p = torch.softmax(logits / 0.5, -1)[0]
    torch.testing.assert_close(result, p[2:].log())
    torch.testing.assert_close(entropy, -(p * p.log()).sum()[None])


def test_a_margin_by_strength_asks_for_a_share_of_it():
    # -log sigmoid(1 - m) at scores 1 and 0: Llama 2, eq. 2, with the whole margin and with a third of it.
    scores = torch.tensor([1.0, 0.0])
    for levels, golden in (([3.0, 0.0], 0.693147), ([1.0, 0.0], 0.414370), ([0.0, 0.0], 0.313262)):
        loss = objectives.ranking_loss(scores, [1, 2], margin=1.0, levels=levels)
        assert loss.item() == pytest.approx(golden, abs=1e-6)
    # Not said, and said against the ranks: no margin. Beyond the strongest: the whole one.
    for levels in ([math.nan, 0.0], [-2.0, 0.0]):
        loss = objectives.ranking_loss(scores, [1, 2], margin=1.0, levels=levels)
        assert loss.item() == pytest.approx(0.313262, abs=1e-6)
    assert objectives.ranking_loss(scores, [1, 2], 1.0, levels=[7.0, 1.0]).item() == pytest.approx(
        0.693147, abs=1e-6
    )
