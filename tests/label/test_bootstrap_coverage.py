"""Intervals hold what they promise: they cover the truth in about 95% of simulated sets."""

import numpy as np
import pytest

from label.statistics.alpha import alpha
from label.statistics.bootstrap import item_weights, resampled_sums
from label.statistics.bradley_terry import bradley_terry, strengths, win_probability
from label.statistics.pair_agreement import agreement
from label.statistics.votes import VoteCounts

SETS, ITEMS, VOTES_PER_PAIR = 400, 120, 3
THETA = np.array([0.6, 0.0, -0.6])


def votes(items, rng):
    """(I, 3, 3) wins: all votes of an item share its prompt, which suits some policies better."""
    theta = THETA + rng.normal(0, 1.0, (items, 3))
    chance = win_probability(theta[:, :, None] - theta[:, None, :])
    wins = np.zeros((items, 3, 3))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        wins[:, a, b] = rng.binomial(VOTES_PER_PAIR, chance[:, a, b])
        wins[:, b, a] = VOTES_PER_PAIR - wins[:, a, b]
    return wins


def counts_of(wins):
    return VoteCounts(("a", "b", "c"), wins, np.zeros_like(wins))


def coverage(truth, intervals):
    low, high = np.array(intervals).T
    return float(((low <= truth) & (truth <= high)).mean())


def test_intervals_of_strengths_cover_the_truth_by_item_and_not_by_vote():
    rng = np.random.default_rng(2024)
    truth = strengths(votes(200_000, rng).sum(0)[None], 0)[0]
    by_item, by_vote = [], []
    for number in range(SETS):
        wins = votes(ITEMS, rng)
        strength = bradley_terry(counts_of(wins), rng, draws=500).strength("a")
        by_item.append((strength.low, strength.high))
        if number % 4:
            continue
        # The same votes, each as an item of its own: what many leaderboards do.
        total = wins.sum(0)
        single = np.repeat(np.eye(9), total.ravel().astype(int), axis=0).reshape(-1, 3, 3)
        strength = bradley_terry(counts_of(single), rng, draws=100).strength("a")
        by_vote.append((strength.low, strength.high))
    assert 0.92 <= coverage(truth[0], by_item) <= 0.98
    assert coverage(truth[0], by_vote) < 0.92


def labels(items, rng):
    """(3, I): three labelers whose answers agree with the item's in 80%."""
    true = rng.integers(3, size=items)
    other = rng.integers(3, size=(3, items))
    return np.where(rng.random((3, items)) < 0.7, true, other).astype(float)


def test_intervals_of_alpha_cover_the_truth():
    rng = np.random.default_rng(2025)
    truth = alpha(labels(100_000, rng), "nominal", rng, draws=2).value
    intervals = []
    for _ in range(SETS):
        result = alpha(labels(100, rng), "nominal", rng, draws=200)
        intervals.append((result.low, result.high))
    assert 0.92 <= coverage(truth, intervals) <= 0.98


def rankings(items, rng):
    """(I, 2, 4): two rankings of four responses, of which some items are harder than others."""
    worth = rng.normal(0, rng.uniform(0.2, 3, (items, 1, 1)), (items, 1, 4))
    perceived = worth + rng.normal(0, 1, (items, 2, 4))
    return perceived.argsort(-1).argsort(-1) + 1


def test_intervals_of_agreement_cover_the_truth():
    rng = np.random.default_rng(2026)
    truth = agreement(rankings(15_000, rng)).without_ties.value
    intervals = []
    for _ in range(SETS):
        result = agreement(rankings(40, rng)).without_ties
        intervals.append((result.low, result.high))
    assert 0.92 <= coverage(truth, intervals) <= 0.98


def test_resampling_takes_whole_items():
    rng = np.random.default_rng(0)
    weights = item_weights(5, 200, rng)
    assert (weights.sum(1) == 5).all()
    assert weights.mean(0) == pytest.approx(np.ones(5), abs=0.25)
    sums = resampled_sums(np.arange(10.0).reshape(5, 2), weights)
    assert sums.shape == (200, 2)
    assert sums[0].tolist() == (weights[0] @ np.arange(10.0).reshape(5, 2)).tolist()
    assert item_weights(0, 3, rng).shape == (3, 0)
