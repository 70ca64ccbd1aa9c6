"""The loop that pretrain, sft and reward share: train in short strides, log, validate, checkpoint, export."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cluster.context import Context
from cluster.fleets.fleet import Fleet, utilization
from cluster.run.checkpoints import Checkpoints
from cluster.run.progress import progress

STRIDE_SECONDS = (
    2.0  # how often the driver hears from the learners: long enough to cost nothing, short enough to watch
)


def supervise(
    context: Context,
    stage: str,
    learners: Fleet,
    total: int,
    checkpoint_every: int,
    consumed: Sequence[Path],
    finish: Callable[[], dict[str, float]] = dict,
) -> dict[str, Any]:
    """Drives a started task to its last step, from its newest checkpoint if there is one, then exports the model.

    `consumed` are the files and models that the stage is made from, `finish` runs on the trained task before the
    export. Returns the final validation and what `finish` found.
    """
    checkpoints = Checkpoints(context.run.stage(stage))
    saved = checkpoints.newest()
    done = 0
    if saved:
        done = learners.all("load", checkpoints.path(saved["step"]), "state")[0]
    stride = 1
    with context.monitor(stage) as monitor, progress(stage, total=total, done=done) as bar:
        monitor.truncate(stage, done)
        while done < total:
            until_save = checkpoint_every - done % checkpoint_every
            started = time.perf_counter()
            steps = learners.all("train", min(stride, until_save, total - done))[0]
            seconds = time.perf_counter() - started
            rate = sum(s["tokens"] for s in steps) / seconds
            speed = {"perf/tokens_per_second": rate, **utilization(learners, rate)}
            for metrics in steps:
                done += 1
                monitor.log(done, {**metrics, **speed})
            bar.advance(len(steps), f"loss {steps[-1]['loss/train']:.3f}  {rate:,.0f} tokens/s")
            stride = max(1, round(len(steps) * STRIDE_SECONDS / seconds))
            if done % checkpoint_every == 0 and done < total:
                monitor.log(done, learners.all("validate")[0])
                checkpoints.save(done, learners)
                checkpoints.commit(done, {})
        found = {**learners.all("validate")[0], **finish(), **context.counts()}
        monitor.log(done, found)
        learners.all("export", context.run.stage(stage) / "model")
        monitor.lineage(consumed, [context.run.stage(stage) / "model"])
    checkpoints.clear()
    return found
