"""Resolves every `dtype: auto` of a run's config, once, in the driver and before anything depends on it.

Learners and PPO take what the machine multiplies fast (`common.hardware`); rollout engines and scoring
actors take what PPO takes. A run that is continued keeps the precisions of its config.yaml: its
checkpoints are of them, and another machine may choose otherwise. serve.dtype is resolved where the run
is served, which may be elsewhere; only `hero plan` shows what it would be here.
"""

from __future__ import annotations

from typing import Any, get_args

import yaml

from cluster.config import RunConfig
from common.config import Precision
from common.errors import UserError
from common.hardware import Choice, choose, device_of, is_slow, slow_warning
from common.run_paths import RunPaths

CHOSEN = ("learners", "ppo")
"""Sections whose auto asks the hardware."""
FOLLOWING = ("rollout", "scoring")
"""Sections whose auto is ppo.dtype."""


def resolve(config: RunConfig, redo: str | None = None, serving: bool = False) -> tuple[RunConfig, list[str]]:
    """The config without auto, and the lines to print: the precisions with their reasons, then warnings.

    `redo` is the stage of `hero run --from`. `serving`: resolves serve.dtype too.
    """
    device = config.cluster.device
    # With the first stage done again, nothing of the old precision is left.
    recorded = {} if redo == config.stages[0] else _recorded(config)
    choices: dict[str, Choice] = {}
    notes = []
    for name in CHOSEN:
        setting, kept = getattr(config, name).dtype, recorded.get(name)
        choices[name], here = choose(setting, device, kept), choose(setting, device)
        if here.dtype != choices[name].dtype:
            notes.append(
                f"{name}.dtype stays {choices[name].dtype}, with which this run began; this machine would "
                f"choose {here.dtype} ({here.reason})"
            )
    as_ppo = Choice(choices["ppo"].dtype, "as ppo.dtype")
    for name in FOLLOWING:
        choices[name] = choose(getattr(config, name).dtype, device, as_ppo)
    if serving:
        choices["serve"] = choose(config.serve.dtype, device_of(config.serve.gpus))
    sections = {}
    for name, choice in choices.items():
        sections[name] = getattr(config, name).model_copy(update={"dtype": choice.dtype})
    notes += _slow(config)
    return config.model_copy(update=sections), [_line(choices), *notes]


def _recorded(config: RunConfig) -> dict[str, Choice]:
    """The precisions of the run's config.yaml, by section; empty for a new run."""
    path = RunPaths(config.directory).config
    if not path.exists():
        return {}
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError:
        values = None
    # Somebody has edited it.
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: damaged; it records this run's configuration and is not read as one: remove it, and "
            "`hero run` writes it again"
        )
    choices = {}
    for name in CHOSEN:
        dtype: Any = (values.get(name) or {}).get("dtype")
        if dtype in get_args(Precision):
            choices[name] = Choice(dtype, "recorded in this run's config.yaml")
    return choices


def _line(choices: dict[str, Choice]) -> str:
    """One line; sections of the same choice stand together."""
    sections: dict[Choice, list[str]] = {}
    for name, choice in choices.items():
        sections.setdefault(choice, []).append(name)
    parts = [f"{', '.join(names)} {choice.dtype} ({choice.reason})" for choice, names in sections.items()]
    return f"dtype: {'; '.join(parts)}"


def _slow(config: RunConfig) -> list[str]:
    """One warning for all keys that ask this CPU for bfloat16 that it emulates."""
    keys = []
    for name in (*CHOSEN, *FOLLOWING):
        if is_slow(getattr(config, name).dtype, config.cluster.device):
            keys.append(f"{name}.dtype")
    return [slow_warning(keys)] if keys else []
