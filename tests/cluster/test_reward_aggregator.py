"""Scores of real scoring actors become rewards; responses without one never reach the learners."""

import json
import re

import numpy as np
import pytest
import ray

from actors.config import ScoringConfig
from actors.reward_config import RewardsConfig
from cluster.fleets.scoring_fleet import ScoringFleet
from cluster.rl.reward_aggregator import RewardAggregator, RunningMoments
from common.errors import RunStoppedError
from common.ray_session import start_ray
from tests.learners import fixtures

SOURCES = [
    {"kind": "model", "weight": 2.0, "clip": 0.5},
    {
        "kind": "function",
        "path": "tests.cluster.test_reward_aggregator:quality",
        "weight": 0.5,
        "clip": 3.0,
        "normalize": True,
    },
]


def quality(row, response, ended):
    if row["quality"] is None:
        raise ValueError("no quality")
    return row["quality"]


@pytest.fixture(scope="module")
def scorers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rewards")
    fixtures.make_files(folder)
    start_ray(None, 2, 0.1)
    arguments = {
        "policy": str(folder / "policy"),
        "reward_model": str(folder / "reward"),
        "config": ScoringConfig(dtype="float32"),
        "rewards": RewardsConfig(sources=SOURCES),
        "model": fixtures.MODEL,
    }
    target, logs = "actors.scoring:ScoringActor", folder / "logs"
    yield ScoringFleet("scoring", target, [arguments], {"num_cpus": 0}, logs)
    ray.shutdown()


def rows_of(qualities):
    return {i: {"prompt": f"p{i}", "quality": quality} for i, quality in enumerate(qualities)}


def score(scorers, tmp_path, qualities, share=0.5, state=None):
    """Scores 12 samples in parts of 5 and 7: (scored parts as values, metrics, aggregator)."""
    samples = fixtures.make_batch(size=12).samples
    refs = [ray.put(samples.select(range(5))), ray.put(samples.select(range(5, 12)))]
    config = RewardsConfig(sources=SOURCES, quarantine_share=share)
    rewards = RewardAggregator(config, scorers, tmp_path / "quarantine.jsonl", state)
    parts, metrics = rewards.score(refs, rows_of(qualities), 1.0, step=1)
    values = [(ray.get(part.samples), part.scores_B, ray.get(part.ref_logprobs_N)) for part in parts]
    return values, metrics, rewards


def model_term(scorers, qualities):
    """Weighted and clipped scores of the reward model alone."""
    samples = fixtures.make_batch(size=12).samples
    scores_ref, _ = scorers.submit_score(0, ray.put(samples), 1.0, rows_of(qualities))
    return 2 * ray.get(scores_ref).raw_CB[0].clip(-0.5, 0.5)


def test_sources_are_clipped_normalized_weighted_and_added(scorers, tmp_path):
    qualities = [*range(11), 100.0]
    parts, metrics, _ = score(scorers, tmp_path, qualities)
    scores_B = np.concatenate([scores_B for _, scores_B, _ in parts])
    clipped = np.minimum(qualities, 3.0)
    normalized = (clipped - clipped.mean()) / clipped.std()
    assert np.allclose(scores_B, model_term(scorers, qualities) + 0.5 * normalized, atol=1e-5)
    assert scores_B.dtype == np.float32
    assert metrics["rewards/quality"] == pytest.approx(np.mean(qualities))
    assert (tmp_path / "quarantine.jsonl").read_text() == ""


def test_statistics_continue_from_a_checkpoint(scorers, tmp_path):
    qualities = [*range(11), 100.0]
    _, _, rewards = score(scorers, tmp_path, qualities)
    state = json.loads(json.dumps(rewards.state))
    parts, _, continued = score(scorers, tmp_path, [0.0] * 12, state=state)
    scores_B = np.concatenate([scores_B for _, scores_B, _ in parts])
    both = np.concatenate([np.minimum(qualities, 3.0), np.zeros(12)])
    expected = 0.5 * (0 - both.mean()) / both.std()
    assert np.allclose(scores_B - model_term(scorers, qualities), expected, atol=1e-5)
    assert continued.state["responses"] == 24


def test_running_moments_are_those_of_all_scores_together():
    scores = np.random.default_rng(0).normal(3, 2, size=50)
    moments = RunningMoments()
    for part in np.split(scores, [7, 8, 30]):
        moments.add(part)
    assert [moments.count, moments.mean] == pytest.approx([50, scores.mean()])
    assert moments.squares == pytest.approx(50 * scores.var())
    assert moments.std == pytest.approx(scores.std())


def test_a_response_without_reward_is_quarantined(scorers, tmp_path):
    qualities = [1.0] * 12
    qualities[3] = qualities[5] = None
    parts, metrics, rewards = score(scorers, tmp_path, qualities)
    (first, first_scores_B, first_ref_N), (second, second_scores_B, second_ref_N) = parts
    assert first.prompt_ids_B.tolist() == [0, 1, 2, 4]
    assert second.prompt_ids_B.tolist() == [6, 7, 8, 9, 10, 11]
    assert (len(first_scores_B), len(second_scores_B)) == (4, 6)
    assert np.isfinite(np.concatenate([first_scores_B, second_scores_B])).all()
    assert (len(first_ref_N), len(second_ref_N)) == (first.offsets[-1], second.offsets[-1])
    assert (second_ref_N[second.response_mask_N] != 0).all()
    rows = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert [(row["prompt"], row["source"], row["step"]) for row in rows] == [
        ("p3", "quality", 1),
        ("p5", "quality", 1),
    ]
    # With the place in the user's file.
    assert all(re.match(r"ValueError: no quality \(.*, line \d+\)", row["reason"]) for row in rows)
    assert metrics["rewards/quarantined"] == rewards.state["quarantined"] == 2


def test_too_many_responses_without_reward_stop_the_run(scorers, tmp_path):
    message = r"1 of 12 responses have no reward, over .*=0.05; the last: quality: ValueError: no"
    with pytest.raises(RunStoppedError, match=message):
        score(scorers, tmp_path, [1.0] * 11 + [None], share=0.05)
    with pytest.raises(RunStoppedError, match="12 of 12 responses"):
        score(scorers, tmp_path, [None] * 12, share=0.999)


def test_a_source_that_is_only_watched_may_fail(tmp_path):
    sources = [SOURCES[0], {**SOURCES[1], "weight": 0}]
    rewards = RewardAggregator(RewardsConfig(sources=sources), None, tmp_path / "quarantine.jsonl")
    raw_CB = np.array([[0.25, -1.0], [np.nan, 3.0]])
    reward_B, metrics = rewards._combine(raw_CB, np.ones((2, 2), bool))
    assert reward_B.tolist() == [0.5, -1.0]
    assert metrics == {"rewards/model": -0.375, "rewards/quality": 3.0}
    assert rewards._reward_is_known(raw_CB).tolist() == [True, True]
    assert rewards._reward_is_known(raw_CB[::-1]).tolist() == [False, True]
