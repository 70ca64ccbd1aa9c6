"""The Ray actor that every fleet is made of: sends its output to a log file, then hosts one plain object.

The hosted classes (`actors.rollout`, `actors.scoring`, `learners.actor`) know nothing of Ray. Their modules are
imported after the redirection, because vLLM and DeepSpeed talk while they are imported.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from learners.logs import log_to


class Host:
    def __init__(self, name: str, target: str, log: str, arguments: dict[str, Any]) -> None:
        log_to(Path(log), name)
        self.name = name
        self.inner = load_object(target)(**arguments)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Calls a method of the hosted object; object references among the arguments arrive as their values."""
        return getattr(self.inner, method)(*args, **kwargs)


def load_object(path: str) -> Any:
    """The object that "module:name" names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
