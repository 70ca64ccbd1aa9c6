"""Where the time of a PPO iteration goes: timings, throughput, idle shares and FLOP utilization.

`IterationTimer` measures in the driver; the functions below it are pure and turn what it measured
into metrics.

    next_batch                learn                          scale   push
    ├ generation ┬ scoring ┤  ├ learning (rank 0) ┬ ... ┤    ├ ...┤  ├ sync ┬ probe ┤
    batch_s                   update_s                               total_s: all of them
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cluster.fleets.fleet import Fleet

BusySeconds = dict[str, list[float]]
"""By fleet: seconds that each actor has spent in calls so far."""


@dataclass(frozen=True)
class IterationTimes:
    """Seconds of one iteration."""

    total_s: float
    batch_s: float
    """Until the scored batch was there."""
    generation_s: float
    """Of these, what the driver waited for engines."""
    update_s: float
    """From there until the last learner had returned."""
    learning_s: float
    """Of these, what rank 0 measured itself."""
    sync_s: float
    probe_s: float


class IterationTimer:
    """Runs from its creation. `batch_ready` and `updated` note the times of the two long steps,
    `stop` ends it."""

    def __init__(self, fleets: Mapping[str, Fleet]) -> None:
        self._fleets = fleets
        # Before the clock starts, since the question itself waits for an answer of every actor.
        self._busy = busy_seconds(fleets)
        self._started = time.perf_counter()
        self.batch_s = self.update_s = self.total_s = 0.0

    def batch_ready(self) -> None:
        self.batch_s = time.perf_counter() - self._started

    def updated(self) -> None:
        self.update_s = time.perf_counter() - self._started - self.batch_s

    def stop(self) -> None:
        self.total_s = time.perf_counter() - self._started

    def times(self, generation_s: float, learning_s: float, sync: Mapping[str, float]) -> IterationTimes:
        """`sync` are the metrics of `WeightSync.push`."""
        return IterationTimes(
            total_s=self.total_s,
            batch_s=self.batch_s,
            generation_s=generation_s,
            update_s=self.update_s,
            learning_s=learning_s,
            sync_s=sync["time/sync"],
            probe_s=sync["time/probe"],
        )

    def fleet_metrics(self) -> dict[str, float]:
        """Size and idle share of each fleet."""
        sizes = {f"actors/{name}": float(len(fleet)) for name, fleet in self._fleets.items()}
        return {**idle_shares(self._busy, busy_seconds(self._fleets), self.total_s), **sizes}


def busy_seconds(fleets: Mapping[str, Fleet]) -> BusySeconds:
    return {name: fleet.busy() for name, fleet in fleets.items()}


def time_metrics(times: IterationTimes) -> dict[str, float]:
    """Overhead is what none of the actors' phases accounts for: calls, arguments, and the driver
    itself."""
    overhead_s = times.total_s - times.batch_s - times.learning_s - times.sync_s - times.probe_s
    return {
        "time/iteration": times.total_s,
        "time/generation": times.generation_s,
        "time/scoring": times.batch_s - times.generation_s,
        "time/learning": times.learning_s,
        "time/overhead": overhead_s,
    }


def throughput_metrics(
    times: IterationTimes, update: Mapping[str, float], epochs: int, staleness: int
) -> dict[str, float]:
    """`update` are the learners' metrics: tokens and responses of the batch, and the mean
    response length in tokens."""
    responses = update["objective/responses"]
    # Engines that run ahead work during the whole iteration; the driver waits for them a shorter
    # time than that.
    generating_s = times.generation_s
    if staleness:
        generating_s = times.total_s
    return {
        "perf/generated_tokens_per_second": update["response/length"] * responses / generating_s,
        "perf/learned_tokens_per_second": epochs * update["tokens"] / times.update_s,
        "perf/samples_per_second": responses / times.total_s,
    }


def idle_shares(before: BusySeconds, after: BusySeconds, total_s: float) -> dict[str, float]:
    """Share of `total_s` that the actors of each fleet were in no call; mean over those that were
    there at both times."""
    shares = {}
    for name, busy in before.items():
        pairs = zip(busy, after[name], strict=False)  # the fleet may have grown or shrunk
        worked_s = float(np.mean([end - start for start, end in pairs]))
        shares[f"idle/{name}"] = 1 - worked_s / total_s
    return shares
