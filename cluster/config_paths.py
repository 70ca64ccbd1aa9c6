"""The keys of a run's config that name files of the machine, made independent of the working directory:
for a job, which has another one, and for whoever serves the run from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.config import RunConfig

FILES = (
    "data.root",
    "model.chat_template",
    "reward_model.chat_template",
    "rewards.sources.*.chat_template",
    "rewards.sources.*.template",
    "rewards.sources.*.cache",
    "rounds.judge.template",
    "rounds.judge.cache",
    "learners.weights_dir",
    "serve.api_keys",
    "serve.canary.file",
    "sample.prompts",
)
"""Keys that always name a file or folder. Paths inside section data start from data.root."""

MODELS = (
    "sample.reward_model",
    "model.path",
    "reward_model.path",
    "rewards.sources.*.path",
    "sample.policies.*.path",
    "evaluate.policies.*.path",
    "reward_model.compare.*.path",
    "serve.models.*.path",
)
"""Keys that name a model folder, but may also name a model of the hub or a version of the run."""


def absolute_paths(config: RunConfig, start: Path) -> RunConfig:
    """The config with paths that do not depend on the working directory; relative ones start at
    `start`."""
    # Not through a dump, which would set every key: some count only where they are set.
    config = config.model_copy(deep=True)
    for key in FILES:
        for section, name in _holders(config, key.split(".")):
            setattr(section, name, str(_absolute(start, getattr(section, name))))
    for key in MODELS:
        for section, name in _holders(config, key.split(".")):
            folder = _absolute(start, getattr(section, name))
            if folder.is_dir():
                setattr(section, name, str(folder))
    return config


def _absolute(start: Path, path: str) -> Path:
    return start.absolute() / Path(path).expanduser()


def _holders(section: Any, parts: list[str]) -> list[tuple[Any, str]]:
    """The sections that hold the key, each with the name it has there; none where it has no value."""
    name, rest = parts[0], parts[1:]
    if name == "*":
        members = section.values() if isinstance(section, dict) else section
        return [holder for one in members for holder in _holders(one, rest)]
    # Sources of reward of one kind have keys that others do not have.
    value = getattr(section, name, None)
    if rest:
        return _holders(value, rest)
    return [(section, name)] if value else []
