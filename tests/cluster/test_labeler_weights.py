"""Weights of labelers from pairs that several have ranked."""

import random

import pytest

from cluster.stages.labeler_weights import labeler_weights
from learners.data.records import RankingRecord


def rankings(accuracies, prompts, labelers_of_each=3):
    """Each labeler orders two responses rightly with a probability of his or her own."""
    rng = random.Random(0)
    rows = []
    for i in range(prompts):
        for name in rng.sample(sorted(accuracies), labelers_of_each):
            ranks = [1, 2] if rng.random() < accuracies[name] else [2, 1]
            row = {"prompt": f"{i}?", "responses": [f"good {i}", f"bad {i}"], "ranks": ranks, "labeler": name}
            rows.append(RankingRecord.parse(row))
    return rows


def test_weights_follow_how_often_a_labeler_is_right():
    accuracies = {"careful": 0.95, "good": 0.85, "tired": 0.7, "random": 0.5}
    weights = labeler_weights(rankings(accuracies, 2000))
    assert sum(weights.values()) / len(weights) == pytest.approx(1)
    # 2η − 1 is 0.9, 0.7, 0.4 and 0, their mean 0.5.
    for name, expected in {"careful": 1.8, "good": 1.4, "tired": 0.8, "random": 0.0}.items():
        assert weights[name] == pytest.approx(expected, abs=0.2), name


def test_without_shared_pairs_nobody_is_weighed():
    assert labeler_weights(rankings({"a": 0.9, "b": 0.9}, 50, labelers_of_each=1)) == {}
