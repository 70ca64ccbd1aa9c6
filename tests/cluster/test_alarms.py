"""Every alarm rings on its sign and names its evidence, and stays silent without it."""

import pytest

from cluster.config import AlarmsConfig
from cluster.rl.alarms import Alarms

HEALTHY = {"objective/kl": 1.0, "objective/entropy": 0.4, "response/ended": 0.99, "response/length": 10.0}


def rung(*iterations, **config):
    alarms = Alarms(AlarmsConfig(**config))
    return [alarms.check({**HEALTHY, **changed, "step": step}) for step, changed in enumerate(iterations, 1)]


def evaluation(score, reward, kl):
    return {"eval/score": score, "eval/score_error": 0.1, "eval/reward": reward, "eval/kl": kl}


@pytest.mark.parametrize(
    ("name", "changed", "evidence"),
    [
        ("kl", {"objective/kl": 12.5}, "12.50 nats at iteration 2, over alarms.kl=10"),
        ("entropy", {"objective/entropy": 0.03}, "0.0300 nats a token at iteration 2, 0.400 in the first"),
        ("ended", {"response/ended": 0.4}, "40.0% of the responses end by themselves"),
        ("length", {"response/length": 21.0}, "21.0 tokens at iteration 2, 10.0 in the first"),
    ],
)
def test_an_alarm_rings_with_its_evidence(name, changed, evidence):
    quiet, (alarm,) = rung({}, changed)
    assert quiet == []
    assert alarm.name == name
    assert evidence in alarm.evidence


def test_overoptimization_is_a_falling_judge_under_a_rising_reward():
    rows = rung(evaluation(5.0, 0.5, 1), {}, evaluation(5.2, 0.7, 2), evaluation(4.5, 0.9, 6))
    assert rows[:3] == [[], [], []]
    assert rows[3][0].name == "overoptimization"
    assert "from 5.200 at iteration 3 to 4.500 at 4 (4.9 standard errors)" in rows[3][0].evidence


@pytest.mark.parametrize("last", [evaluation(5.0, 0.9, 6), evaluation(4.5, 0.6, 6)])
def test_noise_in_the_judge_or_a_fall_of_both_is_no_overoptimization(last):
    assert rung(evaluation(5.2, 0.7, 2), last) == [[], []]


def test_an_alarm_rings_once_until_its_sign_has_gone():
    high = {"objective/kl": 20.0}
    assert [len(alarms) for alarms in rung({}, high, high, {}, high)] == [0, 1, 0, 0, 1]


def test_a_resumed_run_does_not_repeat_what_rang_before():
    seen = [{**HEALTHY, "step": 1}, {**HEALTHY, "objective/kl": 20.0, "step": 2}]
    alarms = Alarms(AlarmsConfig(), seen)
    assert alarms.check({**HEALTHY, "objective/kl": 21.0, "step": 3}) == []
    assert alarms.ringing == {"kl"}
