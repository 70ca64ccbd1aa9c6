"""The keys of a run's config that name files of the machine, made independent of the working directory:
for a job, which has another one, and for whoever serves the run from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.config import RunConfig

FILES = ("data.root", "model.chat_template", "learners.weights_dir", "serve.api_keys", "serve.canary.file")
"""Keys that always name a file or folder. Paths inside section data start from data.root."""

MODELS = ("model.path", "reward_model.path", "serve.models.*.path")
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
        return [holder for one in section.values() for holder in _holders(one, rest)]
    value = getattr(section, name)
    if rest:
        return _holders(value, rest)
    return [(section, name)] if value else []
