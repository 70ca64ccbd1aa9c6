"""Whether what a run directory holds was made from the inputs of the present config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.config import RunConfig
from cluster.run.checkpoints import MANIFEST
from cluster.run.stage_inputs import FILE_KEYS, changes, checkpoint_inputs, stage_inputs
from cluster.stage_registry import STAGES
from common.errors import UserError
from common.files import read_json
from common.run_paths import RunPaths

SHOWN_CHANGES = 6
"""Keys that a refusal names; another model changes a dozen."""


def present_inputs(config: RunConfig, stage: str) -> dict[str, Any]:
    """What a stage records when it begins: the inputs of its result, and those of its checkpoints."""
    return {"inputs": stage_inputs(config, stage), "checkpoints": checkpoint_inputs(config, stage)}


def outdated_stages(config: RunConfig, paths: RunPaths, redone: Sequence[str] = ()) -> dict[str, str]:
    """The interrupted stages of other inputs that have nothing to lose, with what has changed.
    Stages in `redone` are to be done again. Raises UserError for another stage that has something to
    lose. Writes nothing."""
    outdated = {}
    for stage in STAGES:
        of_stage = paths.stage(stage)
        recorded, is_done = read_json(of_stage.inputs), read_json(of_stage.done) is not None
        if stage not in config.stages:
            if recorded and is_done:
                _check_left_out(config, paths, stage, recorded["inputs"])
            continue
        # A finished stage without a record is one of an older version.
        if stage in redone or (recorded is None and (is_done or _is_empty(of_stage.folder))):
            continue
        changed = ["inputs that an older version did not record"]
        if recorded:
            now = present_inputs(config, stage)
            changed = changes(recorded["inputs"], now["inputs"])
            if not is_done and _has_checkpoint(paths, stage):
                changed += changes(recorded["checkpoints"], now["checkpoints"])
        if changed and (is_done or _has_work(paths, stage)):
            raise UserError(_refusal(paths, stage, is_done, changed))
        if changed:
            outdated[stage] = _named(changed)
    return outdated


def _check_left_out(config: RunConfig, paths: RunPaths, stage: str, recorded: dict[str, Any]) -> None:
    """Raises UserError if the config names another model than the one that a stage of an earlier
    start was made from: `RunDirectory.model` would return that stage's, and the named one would be
    ignored."""
    now = stage_inputs(config, stage)
    for key in FILE_KEYS:
        section, _, name = key.partition(".")
        value = now.get(section, {}).get(name)
        if value and value != recorded.get(section, {}).get(name):
            raise UserError(
                f"{paths.root}: stage {stage}, whose result this run uses, was finished with another "
                f"{key}; leave {key} as it was, or choose another run_dir"
            )


def _refusal(paths: RunPaths, stage: str, is_done: bool, changed: Sequence[str]) -> str:
    state, use = "interrupted", "continue it"
    if is_done:
        state, use = "finished", "keep its result"
    return (
        f"{paths.root}: stage {stage} was {state} with other inputs: {_named(changed)}; change that back "
        f"to {use}, add --from {stage} to do it again, or choose another run_dir"
    )


def _named(changed: Sequence[str]) -> str:
    named = ", ".join(changed[:SHOWN_CHANGES])
    if len(changed) > SHOWN_CHANGES:
        named += f" and {len(changed) - SHOWN_CHANGES} more keys"
    return named


def _has_checkpoint(paths: RunPaths, stage: str) -> bool:
    return any(paths.stage(stage).checkpoints.glob(f"*/{MANIFEST}"))


def _has_work(paths: RunPaths, stage: str) -> bool:
    """Whether an interrupted stage left what takes long to make."""
    of_stage = {
        "collect": paths.responses,
        "reward": paths.fold_counts,
        "best_of_n": paths.best_of_n_progress,
    }
    return _has_checkpoint(paths, stage) or (stage in of_stage and of_stage[stage].exists())


def _is_empty(folder: Path) -> bool:
    """Whether a stage has not begun there: folders alone may be mount points of the user's."""
    return not any(path.is_file() for path in folder.rglob("*"))
