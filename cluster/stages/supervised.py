"""The loop that pretrain, sft and reward share: train, log, validate, checkpoint, export.

The learners have started a task; the driver asks them for some steps at a time and writes down
what comes back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
    _steps_per_call: int = field(default=1, init=False)

    def __post_init__(self) -> None:
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
        started = time.perf_counter()
        steps = self.learners.train(min(self._steps_per_call, until_checkpoint, self.total_steps - step))
        seconds = time.perf_counter() - started
        rate = sum(metrics["tokens"] for metrics in steps) / seconds
        speed = {"perf/tokens_per_second": rate, **self.learners.utilization(rate)}
        for metrics in steps:
            step += 1
            monitor.log(step, {**metrics, **speed})
        bar.advance(len(steps), f"loss {steps[-1]['loss/train']:.3f}  {rate:,.0f} tokens/s")
        # Measured in each call, since the lengths of sequences and the load of the machine change.
        self._steps_per_call = max(1, round(len(steps) * CALL_SECONDS / seconds))
        return step

    def _checkpoint(self, step: int, monitor: Monitor) -> None:
        # Validation first, so that a curve has a point for every checkpoint.
        monitor.log(step, self.learners.validate())
        self.checkpoints.save(step)
        self.checkpoints.commit(step, {})
