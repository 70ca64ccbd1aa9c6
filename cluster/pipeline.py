"""`hero run`: the stages of a config in order. A finished stage is skipped, an interrupted one
continued."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from cluster.config import RunConfig
from cluster.context import Context
from cluster.fleets.failures import LostObjectError
from cluster.fleets.manager import FleetManager
from cluster.plan import check_feasible, check_stage_option
from cluster.precision import resolve
from cluster.quickstart.generate import write_quickstart_data
from cluster.run.directory import RunDirectory
from cluster.run.mirror import mirrored
from cluster.run.report import write_report
from cluster.run.timings import Timings
from cluster.stage_registry import STAGES, policy_stages, stage_spec
from common.errors import FleetError, StartError
from common.files import append_row, read_json, write_json

EVALUATE = "evaluate"
SAME_FAILURES = 3
"""How often a stage may fail in the same way without a step between. A process that is killed once, as by
another program's use of memory, is not killed at the same place each time."""


def run_stages(config: RunConfig, first: str | None = None, last: str | None = None) -> RunDirectory:
    """Runs the stages of the config that are not finished, up to `last`; `first` and later ones are
    done again.

    Returns the run. Raises the errors of `common.errors`.
    """
    for option, stage in (("--from", first), ("--until", last)):
        if stage is not None:
            check_stage_option(config, option, stage)
    # First of all: what it restores decides about the rest.
    with mirrored(config.cluster.mirror, config.directory, _print_line) as mirror:
        config, precisions = resolve(config, redo=first)
        # Before the directory exists: a refused command leaves nothing behind.
        check_feasible(config)
        run = RunDirectory(config, mirror)
        run.open(redo=first)
        for line in precisions:
            Console().print(line, markup=False, highlight=False, soft_wrap=True)
        _run_unfinished(run, last)
    return run


def _run_unfinished(run: RunDirectory, last: str | None) -> None:
    config = run.config
    # All stages and not only the config's: a stage that --from discarded loses its time as well.
    unfinished = [stage for stage in STAGES if not run.done(stage)]
    wanted = _up_to(config.stages, last)
    pending = [stage for stage in wanted if stage in unfinished]
    if EVALUATE in wanted and EVALUATE not in pending and _has_newer_policy(run, pending):
        pending.append(EVALUATE)
        unfinished.append(EVALUATE)
    if not pending:
        return
    timings = Timings(run.paths.timings, unfinished)
    for stage in config.stages[: config.stages.index(pending[-1])]:
        if stage not in pending:
            run.check_result(stage)
    make_quickstart_data(run)
    fleets = FleetManager(config, run.root)
    context = Context(config, run, fleets)
    try:
        if any("heldout" in stage_spec(stage).reads for stage in pending):
            context.check_judge()
        fleets.start(pending)
        timings.add("start")
        for stage in pending:
            started = time.time()
            run.begin(stage)
            results = run_with_recovery(context, stage)
            run.finish(stage, time.time() - started, {**results, **context.data_stats()})
            timings.add(stage)
    finally:
        fleets.close()
        timings.close()
    write_report(run.root)


def _has_newer_policy(run: RunDirectory, pending: Sequence[str]) -> bool:
    """Whether a policy was made after the evaluation, or will be: its stage was not in the config then."""
    evaluated = run.done(EVALUATE)
    for stage in policy_stages():
        done = run.done(stage)
        if stage in pending or (done and evaluated and done["time"] > evaluated["time"]):
            return True
    return False


def run_with_recovery(context: Context, stage: str) -> dict[str, Any]:
    """Runs a stage to its end and returns its results, also when actors die or hang.

    Dead and hung actors are replaced and the others stay. The stage continues from its last
    checkpoint, as it does when the driver is restarted. An actor that failed but is alive has met
    an error of data or code, which would only occur again, so it ends the run; and so does one whose
    constructor has failed. Raises FleetError then, after `cluster.max_restarts` replacements, and after
    SAME_FAILURES equal failures with nothing done between them.
    """
    runner, limit = stage_spec(stage).load(), context.config.cluster.max_restarts
    restarts = same = 0
    last_failure, progress = "", _progress(context.run)
    while True:
        # What an interrupted attempt has read must not be counted twice.
        context.readers.clear()
        try:
            return runner(context)
        except StartError:
            raise  # also of an actor that was to replace another
        except FleetError as error:
            same += 1
            if str(error) != last_failure or _progress(context.run) != progress:
                same = 1
            last_failure, progress, failed_at = str(error), _progress(context.run), time.time()
            replaced = context.fleets.replace_lost()
            # Every actor is alive, so the same call would fail again. What was lost with the network is
            # made again.
            if not replaced and not isinstance(error, LostObjectError):
                raise
            restarts += 1
            if restarts > limit:
                raise FleetError(
                    f"{stage}: {error}; that is failure {restarts} of this stage, over "
                    f"cluster.max_restarts={limit}"
                ) from error
            if same == SAME_FAILURES:
                raise FleetError(
                    f"{stage}: {error}; that happened {same} times with nothing done between them, so a "
                    "further start would not help"
                ) from error
            _record_failure(context.run, stage, failed_at, replaced, error)


def _progress(run: RunDirectory) -> tuple[bytes, int]:
    """Differs once a further step is logged, or responses are collected. The content and not the time of the
    files, which on a shared file system is another host's."""
    last_row, responses = b"", 0
    if run.paths.metrics.exists():
        last_row = run.paths.metrics.read_bytes().rstrip().rpartition(b"\n")[2]
    for path in (run.paths.responses, run.paths.chosen):
        if path.exists():
            responses += path.stat().st_size
    return last_row, responses


def _record_failure(
    run: RunDirectory, stage: str, failed_at: float, replaced: list[str], error: FleetError
) -> None:
    """Adds a row to failures.jsonl and prints what happened."""
    row = {
        "stage": stage,
        "time": failed_at,
        "seconds": time.time() - failed_at,
        "replaced": replaced,
        "error": str(error),
    }
    append_row(run.paths.failures, row)
    done = f"replaced {', '.join(replaced) or 'no actor'}; continues from the last checkpoint"
    message = f"{stage}: {error}\n{stage}: {done}"
    _print_line(message)


def _print_line(line: str) -> None:
    Console(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)


def make_quickstart_data(run: RunDirectory) -> None:
    """Generates the quickstart's data if a stage reads a kind of data that the config names no file
    for."""
    kinds: set[str] = set()
    for stage in run.config.stages:
        kinds.update(stage_spec(stage).reads)
    if all(getattr(run.config.data, kind) for kind in kinds):
        return
    # Written last, so all files are there once it is. Stages that were made from other data have been
    # refused or discarded when the run was opened.
    settings = run.config.quickstart.model_dump()
    if read_json(run.paths.quickstart_config) != settings:
        run.paths.quickstart_config.unlink(missing_ok=True)
        write_quickstart_data(run.paths, run.config.quickstart)
        write_json(run.paths.quickstart_config, settings)


def _up_to(stages: list[str], last: str | None) -> list[str]:
    if last is None:
        return stages
    return stages[: stages.index(last) + 1]
