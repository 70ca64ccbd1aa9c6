"""Every alarm fires on its condition and names its evidence, and does not fire without it."""

import pytest

from cluster.config import AlarmsConfig
from cluster.rl.alarms import Alarm, Alarms, emit
from common.errors import RunStoppedError

HEALTHY = {"objective/kl": 1.0, "objective/entropy": 0.4, "response/ended": 0.99, "response/length": 10.0}


def fired(*iterations, **config):
    """The alarms that fire in each iteration. Metrics that are not given are healthy."""
    alarms = Alarms(AlarmsConfig(**config))
    results = []
    for step, changed in enumerate(iterations, 1):
        results.append(alarms.check({**HEALTHY, **changed, "step": step}))
    return results


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
def test_an_alarm_fires_with_its_evidence(name, changed, evidence):
    first, (alarm,) = fired({}, changed)
    assert first == []
    assert alarm.name == name
    assert evidence in alarm.evidence


def test_overoptimization_is_a_falling_score_and_a_rising_reward():
    results = fired(evaluation(5.0, 0.5, 1), {}, evaluation(5.2, 0.7, 2), evaluation(4.5, 0.9, 6))
    assert results[:3] == [[], [], []]
    (alarm,) = results[3]
    assert alarm.name == "overoptimization"
    assert "from 5.200 at iteration 3 to 4.500 at 4 (4.9 standard errors)" in alarm.evidence


@pytest.mark.parametrize(
    "last",
    [
        evaluation(5.0, 0.9, 6),  # the score fell by less than its error
        evaluation(4.5, 0.6, 6),  # the reward fell too
        evaluation(float("nan"), 0.9, 6),  # no score to compare
    ],
)
def test_noise_or_a_fall_of_both_is_no_overoptimization(last):
    assert fired(evaluation(5.2, 0.7, 2), last) == [[], []]


def test_overoptimization_lasts_until_the_next_evaluation():
    best, fallen = evaluation(5.2, 0.7, 2), evaluation(4.5, 0.9, 6)
    counts = [len(alarms) for alarms in fired(best, fallen, {}, fallen, best, fallen)]
    assert counts == [0, 1, 0, 0, 0, 1]


def test_an_alarm_fires_once_until_its_condition_has_ended():
    high = {"objective/kl": 20.0}
    assert [len(alarms) for alarms in fired({}, high, high, {}, high)] == [0, 1, 0, 0, 1]


def test_a_resumed_run_does_not_repeat_earlier_alarms():
    earlier = [{**HEALTHY, "step": 1}, {**HEALTHY, "objective/kl": 20.0, "step": 2}]
    alarms = Alarms(AlarmsConfig(), earlier)
    assert alarms.check({**HEALTHY, "objective/kl": 21.0, "step": 3}) == []
    assert alarms.active == {"kl"}


class Recorder:
    """Stands for monitor and progress bar."""

    def __init__(self):
        self.alarms, self.lines = [], []

    def alarm(self, step, name, evidence):
        self.alarms.append((step, name, evidence))

    def print_line(self, text):
        self.lines.append(text)


@pytest.mark.parametrize("stop", [[], ["entropy"]])
def test_alarms_are_written_and_one_of_alarms_stop_ends_the_run(stop):
    recorder = Recorder()
    alarms = [Alarm("kl", "high"), Alarm("entropy", "low")]
    if stop:
        message = "stops at iteration 7, since alarms.stop has entropy: low"
        with pytest.raises(RunStoppedError, match=message):
            emit(alarms, 7, AlarmsConfig(stop=stop), recorder, recorder)
    else:
        emit(alarms, 7, AlarmsConfig(stop=stop), recorder, recorder)
    # All are written before the run stops.
    assert recorder.alarms == [(7, "kl", "high"), (7, "entropy", "low")]
    assert recorder.lines == ["alarm kl: high", "alarm entropy: low"]


def test_without_the_reference_there_is_no_alarm_on_the_kl():
    metrics = {name: value for name, value in HEALTHY.items() if name != "objective/kl"}
    alarms = Alarms(AlarmsConfig())
    assert alarms.check({**metrics, "step": 1}) == []
    better, worse = evaluation(3.0, 1.0, 0.0), evaluation(1.0, 2.0, 0.0)
    del better["eval/kl"], worse["eval/kl"]
    assert alarms.check({**metrics, **better, "step": 2}) == []
    (alarm,) = alarms.check({**metrics, **worse, "step": 3})
    assert "the reward rose from 1.000 to 2.000" in alarm.evidence
    assert "KL" not in alarm.evidence
