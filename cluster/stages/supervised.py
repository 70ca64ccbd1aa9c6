"""The loop that pretrain, sft and reward share: train, log, validate, checkpoint, export.

The learners have started a task; the driver asks them for some steps at a time and writes down
what comes back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.context import Context
from cluster.fleets.learner_fleet import LearnerFleet
from cluster.run.checkpoints import Checkpoints
from cluster.run.monitor import Monitor
from cluster.run.progress import Bar, progress

# Length of one call to the learners: long enough that calls cost nothing, short enough to show
# progress.
CALL_SECONDS = 2.0


class StepCalls:
    """Training in calls of about CALL_SECONDS each."""

    def __init__(self, learners: LearnerFleet) -> None:
        self.learners = learners
        self._steps = 1

    def train(self, limit: int) -> tuple[list[dict[str, float]], float]:
        """One call, for at most `limit` steps: (the metrics of each step, tokens per second)."""
        started = time.perf_counter()
        steps = self.learners.train(min(self._steps, limit))
        seconds = time.perf_counter() - started
        # Measured in each call, since the lengths of sequences and the load of the machine change.
        self._steps = max(1, round(len(steps) * CALL_SECONDS / seconds))
        return steps, sum(metrics["tokens"] for metrics in steps) / seconds


def train_to_end(learners: LearnerFleet, total_steps: int, name: str) -> None:
    """A started task without checkpoints or a log, with a bar."""
    calls = StepCalls(learners)
    with progress(name, total=total_steps) as bar:
        while bar.done < total_steps:
            steps, rate = calls.train(total_steps - bar.done)
            bar.advance(len(steps), step_note(steps, rate))


def step_note(steps: Sequence[dict[str, float]], rate: float) -> str:
    return f"loss {steps[-1]['loss/train']:.3f}  {rate:,.0f} tokens/s"


@dataclass
class SupervisedStage:
    """A started task on its way to its last step and its exported model."""

    context: Context
    name: str
    learners: LearnerFleet
    total_steps: int
    checkpoint_every: int
    inputs: Sequence[Path]
    """Files and models that the stage is made from, for the lineage."""
    final_metrics: Callable[[], dict[str, float]] = dict
    """Runs on the trained task, before the export; adds to the results."""

    def __post_init__(self) -> None:
        self.calls = StepCalls(self.learners)
        folder = self.context.run.paths.stage(self.name).checkpoints
        self.checkpoints = Checkpoints(folder, self.learners.save, committed=self.context.run.committed)

    def run(self) -> dict[str, Any]:
        """From the latest checkpoint, if there is one, to the last step. Returns the final
        validation, `final_metrics` and the counts of the data."""
        model = self.context.run.paths.stage(self.name).model
        step = self._restore()
        monitored = self.context.monitor(self.name)
        with monitored as monitor, progress(self.name, total=self.total_steps, done=step) as bar:
            # Steps that were logged after the checkpoint are done again.
            monitor.truncate_after(step)
            while step < self.total_steps:
                step = self._train(step, monitor, bar)
                if step % self.checkpoint_every == 0 and step < self.total_steps:
                    self._checkpoint(step, monitor)
            results = {**self.learners.validate(), **self.final_metrics(), **self.context.data_stats()}
            monitor.log(step, results)
            self.learners.export(model)
            monitor.lineage(self.inputs, [model])
        return results

    def _restore(self) -> int:
        """Loads the latest checkpoint; returns the steps done."""
        saved = self.checkpoints.latest()
        if saved is None:
            return 0
        return self.learners.load(self.checkpoints.path(saved["step"]))

    def _train(self, step: int, monitor: Monitor, bar: Bar) -> int:
        """One call to the learners, not beyond the next checkpoint; returns the steps done."""
        until_checkpoint = self.checkpoint_every - step % self.checkpoint_every
        steps, rate = self.calls.train(min(until_checkpoint, self.total_steps - step))
        speed = {"perf/tokens_per_second": rate, **self.learners.utilization(rate)}
        for metrics in steps:
            step += 1
            monitor.log(step, {**metrics, **speed})
        bar.advance(len(steps), step_note(steps, rate))
        return step

    def _checkpoint(self, step: int, monitor: Monitor) -> None:
        # Validation first, so that a curve has a point for every checkpoint.
        monitor.log(step, self.learners.validate())
        self.checkpoints.save(step)
        self.checkpoints.commit(step, {})
