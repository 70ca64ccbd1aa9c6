"""Times, throughput, idle shares and FLOP utilization of an iteration, computed by hand."""

import pytest

from cluster.fleets.learner_fleet import flop_utilization
from cluster.rl.iteration_metrics import (
    IterationTimer,
    IterationTimes,
    idle_shares,
    throughput_metrics,
    time_metrics,
)

TIMES = IterationTimes(
    total_s=10.0, batch_s=3.0, generation_s=2.0, update_s=5.0, learning_s=4.5, sync_s=0.75, probe_s=0.25
)
UPDATE = {"objective/responses": 8.0, "response/length": 50.0, "tokens": 600.0}


def test_overhead_is_what_no_phase_accounts_for():
    assert time_metrics(TIMES) == {
        "time/iteration": 10.0,
        "time/generation": 2.0,
        "time/scoring": 1.0,  # 3 - 2
        "time/learning": 4.5,
        "time/overhead": 1.5,  # 10 - 3 - 4.5 - 0.75 - 0.25
    }


def test_throughput_counts_tokens_of_both_epochs():
    assert throughput_metrics(TIMES, UPDATE, epochs=2, staleness=0) == {
        "perf/generated_tokens_per_second": 200.0,  # 8 x 50 / 2 s
        "perf/learned_tokens_per_second": 240.0,  # 2 x 600 / 5 s
        "perf/samples_per_second": 0.8,  # 8 / 10 s
    }


def test_engines_that_run_ahead_generate_all_the_time():
    metrics = throughput_metrics(TIMES, UPDATE, epochs=2, staleness=1)
    assert metrics["perf/generated_tokens_per_second"] == 40.0  # 8 x 50 / 10 s


def test_flop_utilization_is_a_share_of_the_peak_of_all_ranks():
    # 240 tokens/s x 6e9 FLOPs on two ranks of 2e12 FLOP/s
    assert flop_utilization(240.0, (6e9, 2e12), ranks=2) == {"perf/mfu": pytest.approx(0.36)}


def test_flop_utilization_needs_a_known_peak():
    assert flop_utilization(240.0, (6e9, None), ranks=2) == {}


def test_idle_is_what_actors_were_in_no_call():
    before = {"rollout": [1.0, 2.0], "learner": [5.0]}
    after = {"rollout": [5.0, 4.0], "learner": [15.0]}
    # rollout: (4 + 2) / 2 = 3 of 10 seconds
    assert idle_shares(before, after, 10.0) == {"idle/rollout": 0.7, "idle/learner": 0.0}


@pytest.mark.parametrize("after", [[5.0], [5.0, 4.0, 0.5]])
def test_idle_counts_actors_that_were_there_all_the_time(after):
    shares = idle_shares({"rollout": [1.0, 0.0]}, {"rollout": after}, 10.0)
    assert shares == {"idle/rollout": 0.6}  # each has worked 4 of 10 seconds


class BusyFleet:
    """Two actors; each call of `busy` finds them further."""

    def __init__(self):
        self.seconds = 0.0

    def __len__(self):
        return 2

    def busy(self):
        self.seconds += 1.0
        return [self.seconds, self.seconds]


def test_the_timer_splits_an_iteration_at_its_marks(monkeypatch):
    clock = iter([100.0, 103.0, 108.0, 110.0])
    monkeypatch.setattr("cluster.rl.iteration_metrics.time.perf_counter", lambda: next(clock))
    timer = IterationTimer({"learner": BusyFleet()})
    timer.batch_ready()
    timer.updated()
    timer.stop()
    sync = {"time/sync": 0.75, "time/probe": 0.25, "sync/mean_error": 0.0}
    assert timer.times(generation_s=2.0, learning_s=4.5, sync=sync) == TIMES
    assert timer.fleet_metrics() == {"idle/learner": 0.9, "actors/learner": 2.0}
