"""Scoring on real Ray actors: what the driver makes of the scores, and what never reaches the learners."""

import json

import numpy as np
import pytest
import ray

from actors.config import RewardsConfig, ScoringConfig
from cluster.fleets.fleet import Fleet
from cluster.rl.reward_aggregator import RewardAggregator, merged
from common.errors import UserError
from common.ray_session import start_ray
from tests.learners import fixtures

SOURCES = [
    {"kind": "model", "weight": 2.0, "clip": 0.5},
    {
        "kind": "function",
        "path": "tests.cluster.test_reward_aggregator:worth",
        "weight": 0.5,
        "clip": 3.0,
        "normalize": True,
    },
]


def worth(row, response, ended):
    if row["worth"] is None:
        raise ValueError("no worth")
    return row["worth"]


@pytest.fixture(scope="module")
def scorers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rewards")
    fixtures.make_files(folder)
    start_ray(None, 2, 0.1)
    arguments = {
        "reference": str(folder / "policy"),
        "reward_model": str(folder / "reward"),
        "config": ScoringConfig(),
        "rewards": RewardsConfig(sources=SOURCES),
        "model": fixtures.MODEL,
    }
    yield Fleet("scoring", "actors.scoring:ScoringActor", [arguments], {"num_cpus": 0}, folder / "logs")
    ray.shutdown()


def rows_of(worths):
    return {i: {"prompt": f"p{i}", "worth": w} for i, w in enumerate(worths)}


def batch(scorers, tmp_path, worths, share=0.5, state=None):
    """Scores 12 samples in parts of 5 and 7: (samples, scores, references, metrics, rewards)."""
    whole, _ = fixtures.make_batch(size=12)
    refs = [ray.put(whole.select(range(5))), ray.put(whole.select(range(5, 12)))]
    rewards = RewardAggregator(
        RewardsConfig(sources=SOURCES, quarantine_share=share), scorers, tmp_path, state
    )
    found, metrics = rewards.score(refs, rows_of(worths), 1.0, step=1)
    found = [ray.get(x) if isinstance(x, ray.ObjectRef) else x for x in found]
    return found[0::3], np.concatenate(found[1::3]), found[2::3], metrics, rewards


def test_sources_are_clipped_then_normalised_then_weighed_and_added(scorers, tmp_path):
    worths = [*range(11), 100.0]
    _, scores_B, _, metrics, rewards = batch(scorers, tmp_path, worths)
    whole, _ = fixtures.make_batch(size=12)
    judged = ray.get(scorers.submit(0, "score", whole, 1.0, rows_of(worths)))[0]
    clipped = np.minimum(worths, 3.0)
    expected = 2 * judged.raw_CB[0].clip(-0.5, 0.5) + 0.5 * (clipped - clipped.mean()) / clipped.std()
    assert np.allclose(scores_B, expected, atol=1e-5)
    assert metrics["rewards/worth"] == pytest.approx(np.mean(worths))
    assert (tmp_path / "quarantine.jsonl").read_text() == ""
    # From a checkpoint the statistics go on over everything seen.
    state = json.loads(json.dumps(rewards.state))
    again = batch(scorers, tmp_path, [0.0] * 12, state=state)[1]
    both = np.concatenate([clipped, np.zeros(12)])
    assert np.allclose(
        again - 2 * judged.raw_CB[0].clip(-0.5, 0.5), 0.5 * (0 - both.mean()) / both.std(), atol=1e-5
    )


def test_running_moments_are_those_of_all_scores_together():
    scores = np.random.default_rng(0).normal(3, 2, size=50)
    moments = [0, 0.0, 0.0]
    for part in np.split(scores, [7, 8, 30]):
        moments = merged(moments, part)
    assert moments == pytest.approx([50, scores.mean(), 50 * scores.var()])


def test_a_sample_without_reward_is_recorded_and_does_not_reach_the_learners(scorers, tmp_path):
    worths = [1.0] * 12
    worths[3] = worths[5] = None
    (first, second), scores_B, (ref_first, ref_second), metrics, rewards = batch(scorers, tmp_path, worths)
    assert first.prompt_ids_B.tolist() == [0, 1, 2, 4]
    assert second.prompt_ids_B.tolist() == [6, 7, 8, 9, 10, 11]
    assert len(scores_B) == 10
    assert np.isfinite(scores_B).all()
    assert (len(ref_first), len(ref_second)) == (first.offsets[-1], second.offsets[-1])
    assert (ref_second[second.response_mask_N] != 0).all()
    lost = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert [(r["prompt"], r["source"], r["reason"], r["step"]) for r in lost] == [
        ("p3", "worth", "ValueError: no worth", 1),
        ("p5", "worth", "ValueError: no worth", 1),
    ]
    assert metrics["rewards/quarantined"] == rewards.state["quarantined"] == 2


def test_too_many_samples_without_reward_stop_the_run_with_the_reason(scorers, tmp_path):
    with pytest.raises(
        UserError, match=r"1 of 12 responses have no reward, over .*=0.05; the last: worth: ValueError: no"
    ):
        batch(scorers, tmp_path, [1.0] * 11 + [None], share=0.05)
    with pytest.raises(UserError, match="12 of 12 responses"):
        batch(scorers, tmp_path, [None] * 12, share=0.999)
