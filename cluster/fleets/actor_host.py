"""The Ray actor that every fleet is made of: sends its output to a log file, then hosts one plain object.

The hosted classes (`actors.rollout`, `actors.scoring`, `actors.learner`) know nothing of Ray. Their modules are
imported after the redirection, because vLLM and DeepSpeed talk while they are imported.
"""

from __future__ import annotations

import time
import traceback
from pathlib import Path
from typing import Any

from cluster.fleets.heartbeat import HeartbeatSender
from common.logs import log_to
from common.plugins import load_object


class ActorHost:
    """`pulse` is the key under which the actor's heartbeat is found."""

    def __init__(self, name: str, target: str, log: str, arguments: dict[str, Any], pulse: str) -> None:
        log_to(Path(log), name)
        self.name = name
        self._busy = 0.0
        self._heart = HeartbeatSender(pulse)
        with self._heart.at("start"):
            self.inner = load_object(target)(**arguments)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Calls a method of the hosted object; object references among the arguments arrive as their values."""
        started = time.perf_counter()
        try:
            with self._heart.at(method):
                return getattr(self.inner, method)(*args, **kwargs)
        except Exception:
            traceback.print_exc()  # into this actor's log; the driver shows one line
            raise
        finally:
            self._busy += time.perf_counter() - started

    def busy(self) -> float:
        """Seconds spent in calls so far; the rest of an actor's time is waiting for work."""
        return self._busy
