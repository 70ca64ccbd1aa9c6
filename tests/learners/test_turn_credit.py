"""Credit of turns on a problem with two steps whose best policy is known.

The first turn chooses a door. Behind A there is 0.4 at once and nothing later; behind B nothing at once, and
the second turn gets 1 if it opens the right box, else 0. With discount g between the turns B is worth g, so
the best first turn is B for g > 0.4 and A below. A turn has several tokens, of which the first is the
choice.

The policy is a table of logits, so that nothing but the advantages and the loss decides what is learned."""

import numpy as np
import pytest
import torch

from learners.data.episodes import Episodes, EpisodeStatus
from learners.data.samples import Samples, offsets_of
from learners.objectives import policy_loss
from learners.rl.config import PPOConfig
from learners.rl.experience import Experience
from learners.rl.scored_parts import ScoredPart

TURN, WORDS, BATCH = 6, 4, 64
"""Tokens of a turn, of the environment between two, and episodes of a batch."""
LENGTH = 1 + TURN + WORDS + TURN
FIRST, SECOND = 1, 1 + TURN + WORDS
"""Where the choices stand."""


def play(logits, rng):
    """A batch of episodes: choices (BATCH, 2) and their samples."""
    probabilities = torch.softmax(logits, -1).detach().numpy()
    doors = rng.random(BATCH) < probabilities[0, 1]  # True is B
    boxes = rng.random(BATCH) < probabilities[1, 1]  # True is right
    rewards_BT = np.zeros((BATCH, LENGTH), np.float32)
    rewards_BT[~doors, FIRST + TURN - 1] = 0.4
    rewards_BT[doors & boxes, LENGTH - 1] = 1.0
    mask_T = np.zeros(LENGTH, bool)
    mask_T[FIRST : FIRST + TURN] = mask_T[SECOND:] = True
    choices = np.stack([doors, boxes], 1).astype(np.int64)
    return choices, Samples(
        tokens_N=np.zeros(BATCH * LENGTH, np.int32),
        offsets=offsets_of([LENGTH] * BATCH),
        prompt_lengths_B=np.ones(BATCH, np.int32),
        logprobs_N=np.zeros(BATCH * LENGTH, np.float32),
        versions_N=np.tile(np.where(mask_T, 0, -1), BATCH).astype(np.int32),
        prompt_ids_B=np.zeros(BATCH, np.int64),
        ended_B=np.ones(BATCH, bool),
        episodes=Episodes(
            np.tile(mask_T, BATCH),
            rewards_BT.flatten(),
            np.full(BATCH, 2, np.int32),
            np.full(BATCH, EpisodeStatus.DONE, np.int8),
            ("",) * BATCH,
            ({},) * BATCH,
        ),
    )


def learn(seed, updates=150, **keys):
    """(probability of B, probability of the right box) after learning."""
    rng = np.random.default_rng(seed)
    logits = torch.zeros(2, 2, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.05)
    settings = {"advantage": "reinforce_pp", "kl_coef": 0.0, "missing_eos_penalty": 0.0} | keys
    config = PPOConfig(prompts=1, responses=BATCH, minibatches=1, **settings)
    for _ in range(updates):
        choices, samples = play(logits, rng)
        scores_B = samples.episodes.returns_B(samples.offsets)
        experience = Experience.from_parts([ScoredPart(samples, scores_B, None)], config)
        experience.compute_advantages(0.0)
        # The other tokens of a turn are no choice; column TURN is the first token of the second turn.
        advantages_BC = experience.advantages_BT[:, [0, TURN]]
        logprobs_BC = torch.log_softmax(logits, -1)[[[0, 1]], torch.from_numpy(choices)]
        mask_BC = torch.ones_like(advantages_BC)
        loss, _ = policy_loss(logprobs_BC, logprobs_BC.detach(), advantages_BC, mask_BC, 0.2, 0.2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    door, box = torch.softmax(logits, -1)[:, 1].tolist()
    return door, box


@pytest.mark.parametrize("seed", range(3))
def test_the_first_turn_is_credited_for_what_it_makes_possible(seed):
    door, box = learn(seed, gamma=0.8, gamma_per="turn")
    assert door > 0.95
    assert box > 0.95


@pytest.mark.parametrize("seed", range(3))
def test_a_small_discount_between_turns_makes_the_early_reward_the_better(seed):
    door, _ = learn(seed, gamma=0.2, gamma_per="turn")
    assert door < 0.05


def test_the_same_gamma_counted_by_tokens_discounts_the_second_turn_further():
    """0.8 for each of six tokens is 0.26 for a turn, which is below 0.4."""
    door, _ = learn(0, gamma=0.8, gamma_per="token")
    assert door < 0.05


def test_the_second_turn_learns_nothing_from_the_reward_of_the_first():
    """Behind A the box is without effect: REINFORCE credits it with 0 there, whatever A has brought."""
    rng = np.random.default_rng(0)
    _, samples = play(torch.tensor([[5.0, -5.0], [0.0, 0.0]]), rng)
    config = PPOConfig(
        advantage="reinforce", prompts=1, responses=BATCH, minibatches=1, kl_coef=0.0, missing_eos_penalty=0.0
    )
    scores_B = samples.episodes.returns_B(samples.offsets)
    experience = Experience.from_parts([ScoredPart(samples, scores_B, None)], config)
    experience.compute_advantages(0.0)
    assert (experience.advantages_BT[:, TURN:] == 0).all()
    assert (experience.advantages_BT[:, :TURN] == 0.4).all()
