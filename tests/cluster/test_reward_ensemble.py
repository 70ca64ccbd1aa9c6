"""Several reward models as one, and the alarm on their disagreement."""

import numpy as np
import pytest

from actors.reward_config import RewardsConfig
from cluster.config import AlarmsConfig, RunConfig
from cluster.rl.alarms import Alarms
from cluster.rl.evaluation import reward_columns
from cluster.rl.reward_aggregator import RewardAggregator
from cluster.rl.reward_ensemble import combine, combined_models

SCORES_CB = np.array([[1.0, 4.0], [2.0, -2.0], [3.0, 4.0]])


def ensemble(combination, **keys):
    sources = [{"kind": "model"}, {"kind": "model", "path": "a"}, {"kind": "model", "path": "b"}]
    return RewardsConfig(sources=sources, combine=combination, **keys)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ensemble("mean"), [2.0, 2.0]),
        (ensemble("minimum"), [1.0, -2.0]),
        (ensemble("mean_minus_std"), [2 - (2 / 3) ** 0.5, 2 - 8**0.5]),
        (ensemble("mean_minus_std", std_coef=0.5), [2 - 0.5 * (2 / 3) ** 0.5, 2 - 0.5 * 8**0.5]),
    ],
)
def test_scores_are_combined_as_computed_by_hand(config, expected):
    reward_B, disagreement_B = combine(SCORES_CB, config)
    assert reward_B == pytest.approx(expected)
    assert disagreement_B == pytest.approx([(2 / 3) ** 0.5, 8**0.5])
    assert reward_columns(SCORES_CB, np.ones((3, 2), bool), config)["reward"] == pytest.approx(expected)


def test_models_are_combined_and_other_sources_added(tmp_path):
    sources = [
        {"kind": "model", "weight": 2.0, "clip": 3.0},
        {"kind": "http", "url": "http://127.0.0.1:1/x", "weight": 0.5},
        {"kind": "model", "path": "a", "weight": 2.0},
    ]
    config = RewardsConfig(sources=sources, combine="minimum")
    assert combined_models(config) == [0, 2]
    aggregator = RewardAggregator(config, None, tmp_path / "quarantine.jsonl")
    reward_B, metrics = aggregator._combine(
        np.array([[5.0, 1.0], [2.0, 4.0], [4.0, 2.0]]), np.ones((3, 2), bool)
    )
    assert reward_B == pytest.approx([2 * 3 + 0.5 * 2, 2 * 1 + 0.5 * 4])  # the first model's 5 is clipped
    assert metrics["rewards/disagreement"] == pytest.approx(0.5)
    assert metrics["rewards/a"] == 3.0


def test_a_model_of_weight_0_is_measured_and_not_combined():
    sources = [*ensemble("mean").model_dump()["sources"][:2], {"kind": "model", "path": "b", "weight": 0}]
    columns = reward_columns(
        SCORES_CB, np.ones((3, 2), bool), RewardsConfig(sources=sources, combine="minimum")
    )
    assert columns["reward"] == pytest.approx([1.0, -2.0])
    assert columns["reward/b"] == pytest.approx(SCORES_CB[2])


def test_without_a_combination_each_model_counts_with_its_weight():
    sources = [{"kind": "model"}, {"kind": "model", "path": "a", "weight": 0.5}]
    columns = reward_columns(SCORES_CB[:2], np.ones((2, 2), bool), RewardsConfig(sources=sources))
    assert columns["reward"] == pytest.approx([2.0, 3.0])
    assert "reward/disagreement" not in columns


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        (
            {"sources": [{"kind": "model", "weight": 0}]},
            "each has weight 0, so there is nothing to learn from",
        ),
        ({"combine": "mean"}, "combine has no effect here, only with several sources of kind model"),
        ({"std_coef": 2.0}, "std_coef has no effect here, only with combine: mean_minus_std"),
        (
            {
                "sources": [{"kind": "model"}, {"kind": "model", "path": "a", "weight": 2.0}],
                "combine": "mean",
            },
            "have the weights 1, 2; give them one weight",
        ),
        (
            {"sources": [{"kind": "model", "chat_template": "t"}]},
            "chat_template has no effect here, only with a path",
        ),
    ],
)
def test_keys_without_effect_are_refused(rewards, message):
    with pytest.raises(ValueError, match=message):
        RewardsConfig(**rewards)


def test_disagreement_that_grows_fires_an_alarm():
    healthy = {"objective/entropy": 0.4, "response/ended": 1.0, "response/length": 9.0}
    alarms = Alarms(AlarmsConfig())
    assert not alarms.check({**healthy, "step": 1, "rewards/disagreement": 0.2})
    assert not alarms.check({**healthy, "step": 2, "rewards/disagreement": 0.39})
    (alarm,) = alarms.check({**healthy, "step": 3, "rewards/disagreement": 0.5})
    assert alarm.name == "disagreement"
    assert "differ by 0.500 (standard deviation) at iteration 3, 0.200 in the first" in alarm.evidence


@pytest.mark.parametrize("alarms", [{"stop": ["disagreement"]}, {"disagreement": 3.0}])
def test_an_alarm_on_disagreement_needs_several_models(alarms):
    with pytest.raises(ValueError, match="disagreement is measured between the reward models"):
        RunConfig(alarms=alarms)
    RunConfig(alarms=alarms, rewards=ensemble("mean"))
