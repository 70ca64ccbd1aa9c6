"""Episodes in the learners: who wrote which token, whose turn a reward is for, and what is learned from."""

import math

import numpy as np
import pytest
import torch

from learners.config import ModelConfig
from learners.data.episodes import Episodes, EpisodeStatus, turn_ends
from learners.data.packing import pack
from learners.data.samples import Samples, offsets_of
from learners.data.tokenizer import train_tokenizer
from learners.models import PolicyModule, build_policy
from learners.objectives import gae, policy_loss, turn_discounts
from learners.rl.config import PPOConfig
from learners.rl.experience import Experience
from learners.rl.scored_parts import ScoredPart
from tests.learners.fixtures import TEXTS

P, E = "policy", "environment"


def samples_of(episodes, statuses=None):
    """Each episode is a list of (who, number of tokens, reward) after a prompt of two tokens."""
    masks, rewards = [], []
    for turns in episodes:
        mask, reward = [False] * 2, [0.0] * 2
        for who, count, value in turns:
            mask += [who == P] * count
            reward += [0.0] * (count - 1) + [value]
        masks.append(mask)
        rewards.append(reward)
    mask_N = np.concatenate(masks)
    size, total = len(episodes), len(mask_N)
    return Samples(
        tokens_N=np.arange(total, dtype=np.int32) % 50 + 10,
        offsets=offsets_of([len(mask) for mask in masks]),
        prompt_lengths_B=np.full(size, 2, np.int32),
        logprobs_N=np.where(mask_N, -1, 0).astype(np.float32),
        versions_N=np.where(mask_N, 0, -1).astype(np.int32),
        prompt_ids_B=np.arange(size),
        ended_B=np.ones(size, bool),
        episodes=Episodes(
            mask_N,
            np.concatenate(rewards).astype(np.float32),
            np.array([sum(who == P for who, _, _ in turns) for turns in episodes], np.int32),
            np.array(statuses or [EpisodeStatus.DONE] * size, np.int8),
            ("",) * size,
            ({"right": 1.0},) * size,
        ),
    )


TWO_TURNS = [(P, 2, 1.0), (E, 3, 0.0), (P, 1, 2.0)]
ONE_TURN = [(P, 3, 5.0)]


def experience_of(samples, values_BT=None, **changes):
    keys = {
        "advantage": "reinforce",
        "prompts": 2,
        "minibatches": 1,
        "missing_eos_penalty": 0.0,
        "kl_coef": 0.0,
    }
    config = PPOConfig(**keys | changes)
    part = ScoredPart(samples, samples.episodes.returns_B(samples.offsets), None)
    experience = Experience.from_parts([part], config)
    experience.old_logprobs_BT = experience.behaviour_logprobs_BT
    if values_BT is not None:
        experience.values_BT = torch.tensor(values_BT)
    experience.compute_advantages(0.0)
    return experience


def test_lengths_and_masks_count_what_the_policy_wrote():
    samples = samples_of([TWO_TURNS, ONE_TURN])
    assert samples.response_lengths_B.tolist() == [3, 3]
    assert samples.lengths_B.tolist() == [8, 5]
    assert samples.targets(0).tolist() == [False, False, True, True, False, False, False, True]
    ends_N = turn_ends(samples.response_mask_N, samples.offsets)
    assert np.flatnonzero(ends_N).tolist() == [3, 7, 12]


def test_selected_and_joined_episodes_keep_what_is_theirs():
    samples = samples_of([TWO_TURNS, ONE_TURN])
    swapped = samples.select([1, 0])
    assert swapped.episodes.returns_B(swapped.offsets).tolist() == [5.0, 3.0]
    assert swapped.episodes.turns_B.tolist() == [1, 2]
    again = Samples.concat([swapped.select([1]), swapped.select([0])])
    for name in ("policy_mask_N", "rewards_N", "turns_B", "status_B"):
        assert np.array_equal(getattr(again.episodes, name), getattr(samples.episodes, name)), name


def test_rewards_are_learned_from_on_the_turn_that_they_are_for():
    experience = experience_of(samples_of([TWO_TURNS, ONE_TURN]))
    # REINFORCE: what comes from each token on.
    assert experience.advantages_BT.tolist() == [[3.0, 3.0, 2.0], [5.0, 5.0, 5.0]]


def test_a_score_of_another_source_is_on_the_last_turn():
    samples = samples_of([TWO_TURNS, ONE_TURN])
    scores_B = samples.episodes.returns_B(samples.offsets) + np.float32(10)
    config = PPOConfig(advantage="reinforce", prompts=2, minibatches=1, kl_coef=0.0)
    experience = Experience.from_parts([ScoredPart(samples, scores_B, None)], config)
    experience.old_logprobs_BT = experience.behaviour_logprobs_BT
    experience.compute_advantages(0.0)
    assert experience.advantages_BT.tolist() == [[13.0, 13.0, 12.0], [15.0, 15.0, 15.0]]


@pytest.mark.parametrize(
    "advantage", ["gae", "reinforce", "reinforce_pp", "reinforce_pp_baseline", "grpo", "dr_grpo", "rloo"]
)
def test_no_advantage_depends_on_how_much_the_environment_says(advantage):
    values_BT = [[0.5, -0.25, 1.0], [0.0, 1.0, 2.0]]
    short = samples_of([TWO_TURNS, ONE_TURN])
    long = samples_of([[(P, 2, 1.0), (E, 30, 0.0), (P, 1, 2.0)], ONE_TURN])
    changes = (
        {"advantage": advantage, "gamma": 0.9}
        if advantage in ("gae", "reinforce")
        else {"advantage": advantage}
    )
    for samples in (short, long):
        samples.prompt_ids_B[:] = 0
    one, other = (experience_of(samples, values_BT, **changes) for samples in (short, long))
    assert torch.equal(one.advantages_BT, other.advantages_BT)
    assert torch.equal(one.returns_BT, other.returns_BT)


def test_gamma_counts_tokens_or_turns():
    samples = samples_of([TWO_TURNS, ONE_TURN])
    by_token = experience_of(samples, gamma=0.5)
    assert by_token.advantages_BT.tolist() == [[0.5 * (1 + 0.5 * 2), 2.0, 2.0], [1.25, 2.5, 5.0]]
    by_turn = experience_of(samples, gamma=0.5, gamma_per="turn")
    assert by_turn.advantages_BT.tolist() == [[2.0, 2.0, 2.0], [5.0, 5.0, 5.0]]


def test_gae_with_a_discount_between_turns_alone():
    """By hand: gamma 0.5 from the second to the third token, 1 elsewhere; lambda 0.5."""
    rewards_BT = torch.tensor([[0.0, 1.0, 2.0]])
    values_BT = torch.tensor([[1.0, 2.0, 3.0]])
    discounts_BT = turn_discounts(torch.tensor([[0.0, 1.0, 0.0]]), 0.5)
    assert discounts_BT.tolist() == [[1.0, 0.5, 1.0]]
    advantages_BT, returns_BT = gae(rewards_BT, values_BT, torch.ones(1, 3), discounts_BT, 0.5)
    third = 2 - 3
    second = 1 + 0.5 * 3 - 2 + 0.5 * 0.5 * third
    first = 0 + 1 * 2 - 1 + 0.5 * second
    assert advantages_BT.tolist() == [[first, second, third]]
    assert returns_BT.tolist() == [[first + 1, second + 2, third + 3]]


def test_a_discount_that_is_the_same_everywhere_changes_no_bit():
    generator = torch.Generator().manual_seed(0)
    rewards_BT, values_BT = torch.randn(2, 4, 9, generator=generator)
    mask_BT = (torch.rand(4, 9, generator=generator) > 0.2).float()
    one = gae(rewards_BT, values_BT, mask_BT, 0.97, 0.9)
    other = gae(rewards_BT, values_BT, mask_BT, torch.full((4, 9), 0.97), 0.9)
    # A tensor has the float32 next to 0.97, a Python number has float64 precision.
    for left, right in zip(one, other, strict=True):
        assert torch.allclose(left, right, atol=1e-6)


def test_out_of_turns_the_value_behind_the_last_one_can_be_bootstrapped():
    statuses = [EpisodeStatus.TRUNCATED, EpisodeStatus.DONE]
    samples = samples_of([TWO_TURNS, ONE_TURN], statuses)
    config = PPOConfig(
        advantage="gae", lam=1.0, prompts=2, minibatches=1, kl_coef=0.0, bootstrap_truncated=True
    )
    part = ScoredPart(samples, samples.episodes.returns_B(samples.offsets), None)
    experience = Experience.from_parts([part], config)
    experience.bootstrap_values_B = torch.tensor([7.0, 7.0])
    experience.compute_advantages(0.0)
    assert experience.returns_BT.tolist() == [[10.0, 10.0, 9.0], [5.0, 5.0, 5.0]]


def test_metrics_of_episodes():
    statuses = [EpisodeStatus.TRUNCATED, EpisodeStatus.DONE]
    metrics = experience_of(samples_of([TWO_TURNS, ONE_TURN], statuses)).batch_metrics()
    assert metrics["response/length"] == 3.0
    assert metrics["episode/turns"] == 1.5
    assert metrics["episode/environment_tokens"] == 1.5
    assert metrics["episode/return"] == 4.0
    assert (metrics["episode/done"], metrics["episode/truncated"], metrics["episode/failed"]) == (0.5, 0.5, 0)
    assert metrics["environment/right"] == 1.0


@pytest.mark.parametrize("span", [None, math.inf])
def test_the_gradient_of_what_the_environment_wrote_is_exactly_zero(span):
    """With respect to the hidden states that predict its tokens; those that predict the policy's have
    one."""
    tokenizer = train_tokenizer(TEXTS, 320)
    config = ModelConfig(layers=1, width=64, heads=2, kv_heads=1, vocab_size=320, context=64)
    policy = PolicyModule(build_policy(config, tokenizer, seed=1))
    samples = samples_of([TWO_TURNS, ONE_TURN])
    sequences = [samples.sequence(b) for b in range(samples.size)]
    targets = [samples.targets(b) for b in range(samples.size)]
    packed = pack(sequences, targets, tokenizer.pad_token_id, span)
    hidden = []
    policy.model.model.norm.register_forward_hook(
        lambda module, inputs, output: (output.retain_grad(), hidden.append(output))[0]
    )
    layout = (packed.positions_RT, packed.before_N, packed.attention_RTT)
    logprobs_N, _ = policy(packed.tokens_RT, packed.target_mask_RT, *layout)
    assert len(logprobs_N) == samples.response_lengths_B.sum()
    logprobs_1N = logprobs_N[None]
    ones = torch.ones_like(logprobs_1N)
    loss, _ = policy_loss(logprobs_1N, logprobs_1N.detach(), ones, ones, 0.2, 0.2)
    loss.backward()
    size_N = hidden[0].grad.flatten(0, 1).abs().sum(1)
    predicts_policy_N = torch.zeros(len(size_N), dtype=torch.bool)
    predicts_policy_N[packed.before_N] = True
    assert (size_N[~predicts_policy_N] == 0).all()
    assert (size_N[predicts_policy_N] > 0).all()


def test_other_words_of_the_environment_leave_the_loss_its_targets():
    """The number of the environment's tokens changes neither the number of targets nor their weight."""
    short, long = samples_of([TWO_TURNS]), samples_of([[(P, 2, 1.0), (E, 9, 0.0), (P, 1, 2.0)]])
    masks = [experience_of(samples).loss_mask_BT for samples in (short, long)]
    assert torch.equal(masks[0], masks[1])
    assert masks[0].sum() == 3
