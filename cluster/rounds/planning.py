"""The plan of a round: which prompts it uses for what, and which policy is served meanwhile."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from cluster.config import RunConfig
from cluster.rounds.prompts import Prompt, by_use, check_enough, next_prompts, order_key
from cluster.rounds.selection import method_of
from cluster.rounds.state import RoundState, policy_of
from cluster.run.directory import RunDirectory
from cluster.run.stage_inputs import changes
from common.errors import UserError
from common.files import read_jsonl, write_jsonl
from common.run_paths import RunPaths
from learners.data.sources import DatasetReader
from serve.versions import current_policy, locate

SPARE = 1.15
"""Prompts that are sampled for each one that is needed: where all responses are equal there is nothing to
rank."""
FIXED = (
    *("prompts", "responses", "previous", "overlap", "select", "random_share", "candidates"),
    *("comparison_share", "calibration", "gate", "judge"),
)
"""Settings of a round that are fixed when it is planned: what the gate asks for, above all."""
USE = "rounds_use"
"""Key of a candidate row: what the prompt is for."""


def check_prompts(config: RunConfig) -> None:
    """Raises UserError if data.prompts, as far as it is there, has too few prompts for a round: before hours
    of training."""
    sources = RunDirectory(config).sources("prompts")
    if config.data.prompts or Path(sources[0].path).exists():
        check_enough(by_use(read_prompts(config), config), config)


def plan_round(config: RunConfig, state: RoundState) -> dict[str, Any]:
    """Writes the prompts of the round by their use. Returns the figures for its state."""
    kinds = by_use(read_prompts(config), config)
    check_enough(kinds, config)
    used = _used(state)
    rounds, number = config.rounds, state.number
    heldout_count = max(1, round(rounds.prompts * config.reward_model.validation_share))
    wanted = rounds.prompts - heldout_count
    method, why = method_of(config, state.run, number)
    if method == "fisher":
        chosen = wanted - round(wanted * rounds.random_share)
        wanted += round(chosen * (rounds.candidates - 1))
    candidates = _marked("heldout", next_prompts(kinds["heldout"], used, round(heldout_count * SPARE)))
    candidates += _marked("training", next_prompts(kinds["training"], used, round(wanted * SPARE)))
    if number == 1:
        candidates += _marked("calibration", kinds["calibration"][: rounds.calibration])
    write_jsonl(state.paths.candidates, candidates)
    write_jsonl(state.paths.training_prompts, [prompt.row for prompt in kinds["training"]])
    # Each round in another order; the anchor's prompts are the first ones of all rounds.
    compared = sorted(kinds["comparison"], key=lambda one: order_key(one.text, f"comparison {number}"))
    # More than are needed: answers that name their policy are left out.
    compared = compared[: math.ceil(rounds.gate.comparisons * SPARE)]
    anchor = kinds["comparison"][: math.ceil(rounds.gate.anchor * SPARE)]
    different = {prompt.text: prompt for prompt in [*compared, *anchor]}
    write_jsonl(state.paths.comparison_prompts, [prompt.row for prompt in different.values()])
    return {
        "settings": fixed_settings(config),
        "served": served_version(state.run),
        "select": {"method": method, "why": why},
        "prompts": {use: len(prompts) for use, prompts in kinds.items()},
        "policies": [
            name for name, _ in [policy_of(state.run, k, Path()) for k in _sampled_rounds(config, number)]
        ],
        "comparison_prompts": [prompt.text for prompt in compared],
        "anchor_prompts": [prompt.text for prompt in anchor],
    }


def _sampled_rounds(config: RunConfig, number: int) -> list[int]:
    if number > 1 and config.rounds.previous:
        return [number - 1, number - 2]
    return [number - 1]


def check_settings(config: RunConfig, state: RoundState) -> None:
    """Raises UserError if a round at work was planned with other settings."""
    before = state.values.get("settings")
    if before is None or state.is_final:
        return
    changed = changes(before, fixed_settings(config), "rounds.")
    if changed:
        raise UserError(
            f"{state.paths.root}: the round was planned with other settings: {', '.join(changed)}; "
            "change that back until it is finished"
        )


def fixed_settings(config: RunConfig) -> dict[str, Any]:
    values = config.rounds.model_dump(mode="json")
    return {key: values[key] for key in FIXED if key in values}


def read_prompts(config: RunConfig) -> list[Prompt]:
    """All rows of data.prompts, or of the quickstart's prompts."""
    reader = DatasetReader("prompts", config.data, config.seed)
    rows = reader.read(RunDirectory(config).sources("prompts"))
    return [Prompt(record.stored_row(), record.split_text) for _, record in rows]


def base_policy(config: RunConfig) -> Path:
    """The SFT policy, which every round starts from."""
    return RunDirectory(config).model("sft")


def served_version(run: RunPaths) -> str:
    return current_policy(run.root).name if run.current.exists() else "sft-0"


def served_policy(run: RunPaths, version: str, first: Path) -> Path:
    """Model folder of a served version; that of a round is kept there as long as the run."""
    if version == "sft-0":
        return first
    stage, _, number = version.rpartition("-")
    if stage == "round":
        return policy_of(run, int(number), first)[1]
    return locate(run.root, version).folder


def _marked(use: str, prompts: list[Prompt]) -> list[dict[str, Any]]:
    return [{**prompt.row, USE: use} for prompt in prompts]


def _used(state: RoundState) -> Counter[str]:
    """How often earlier rounds have used each prompt, by its text."""
    used: Counter[str] = Counter()
    for paths in state.run.started_rounds():
        if paths.root.name < state.paths.root.name:
            used.update(row[TEXT] for row in read_jsonl(paths.items))
    return used


TEXT = "rounds_text"
"""Key of an item: the text that decides about the prompt's use."""
