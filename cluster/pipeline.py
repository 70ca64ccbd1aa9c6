"""`hero run`: the stages of a config in order, each skipped if it is done, continued if it was interrupted."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console

from cluster.config import STAGES, RunConfig, Stage
from cluster.context import Context
from cluster.fleets.manager import FleetManager
from cluster.plan import check_feasible
from cluster.quickstart.generate import write_quickstart_data
from cluster.run.directory import Run
from cluster.run.report import write_report
from cluster.run.timings import Timings
from cluster.stages import collect, evaluate, ppo, pretrain, reward, sft
from common.errors import FleetError, UserError
from common.files import append_row

RUNNERS: dict[Stage, Callable[[Context], dict[str, Any]]] = {
    "pretrain": pretrain.run,
    "sft": sft.run,
    "collect": collect.run,
    "reward": reward.run,
    "ppo": ppo.run,
    "evaluate": evaluate.run,
}

# What each stage reads; rankings are the collect stage's if they are not the user's.
READS: dict[Stage, tuple[str, ...]] = {
    "pretrain": ("corpus",),
    "sft": ("demonstrations",),
    "collect": ("prompts",),
    "reward": (),
    "ppo": ("prompts", "heldout"),
    "evaluate": ("heldout",),
}


def run_stages(config: RunConfig, first: Stage | None = None, last: Stage | None = None) -> Run:
    """Runs what is left to do of the config's stages, from `first` (done again) to `last`. Returns the run."""
    for option, stage in (("--from", first), ("--until", last)):
        if stage is not None and stage not in config.stages:
            raise UserError(f"{option} {stage}: not one of the config's stages ({', '.join(config.stages)})")
    check_feasible(config)
    run = Run(config)
    run.open(redo=first)
    upto = STAGES.index(last) if last else len(STAGES)
    todo = [s for s in config.stages if STAGES.index(s) <= upto and not run.done(s)]
    if not todo:
        return run
    timings = Timings(run.root / "timings.json", [stage for stage in STAGES if not run.done(stage)])
    make_quickstart_data(run)
    fleets = FleetManager(config, run.root)
    try:
        fleets.start()
        timings.add("start")
        context = Context(config, run, fleets)
        for stage in todo:
            begun = time.time()
            results = run_with_recovery(context, stage)
            run.finish(stage, time.time() - begun, {**results, **context.counts()})
            timings.add(stage)
    finally:
        fleets.close()
        timings.close()
    write_report(run.root)
    return run


def run_with_recovery(context: Context, stage: Stage) -> dict[str, Any]:
    """Runs a stage to its end, whatever dies meanwhile: actors that died or hang are replaced, those that live stay, and
    the stage goes on from its last checkpoint, as `hero run` would after the death of the driver. An actor that failed
    and lives has met a fault of data or code, which would only come again: that ends the run."""
    restarts, limit = 0, context.config.cluster.max_restarts
    while True:
        context.readers.clear()
        try:
            return RUNNERS[stage](context)
        except FleetError as fault:
            failed = time.time()
            lost = context.fleets.heal()
            if not lost:
                raise
            restarts += 1
            told = f"{stage}: {fault}"
            if restarts > limit:
                raise FleetError(
                    f"{told}; that is fault {restarts} of this stage, over cluster.max_restarts={limit}"
                ) from fault
            row = {
                "stage": stage,
                "time": failed,
                "seconds": time.time() - failed,
                "lost": lost,
                "fault": str(fault),
            }
            append_row(context.run.root / "failures.jsonl", row)
            told += f"\n{stage}: {', '.join(lost)} started anew; goes on from the last checkpoint"
            Console(stderr=True).print(told, markup=False, highlight=False, soft_wrap=True)


def make_quickstart_data(run: Run) -> None:
    """Writes the built-in world's files where a stage needs some and the config names none of the user's."""
    if all(getattr(run.config.data, kind) for stage in run.config.stages for kind in READS[stage]):
        return
    if not (run.root / "data" / "heldout.jsonl").exists():
        write_quickstart_data(run.root / "data", run.config.quickstart)
