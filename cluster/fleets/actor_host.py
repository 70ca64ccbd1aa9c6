"""The Ray actor that every fleet consists of: redirects its output to a log file, then hosts one
plain object.

The hosted classes (`actors.learner`, `actors.rollout`, `actors.scoring`) do not know Ray. Their
modules are imported after the redirection, because vLLM and DeepSpeed print while they are
imported.
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
    """Hosts `target` ("module:Class") made with `arguments`. `heartbeat_key` is where its heartbeat
    is stored."""

    def __init__(
        self, name: str, target: str, log: str, arguments: dict[str, Any], heartbeat_key: str
    ) -> None:
        log_to(Path(log), name)
        self.name = name
        self._busy_s = 0.0
        self._heartbeat = HeartbeatSender(heartbeat_key)
        # Loading a model counts as a call, so `cluster.call_timeout_s` bounds it too.
        with self._heartbeat.during("start"):
            self.hosted = load_object(target)(**arguments)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Calls a method of the hosted object; object references among the arguments arrive as
        their values."""
        started = time.perf_counter()
        try:
            with self._heartbeat.during(method):
                return getattr(self.hosted, method)(*args, **kwargs)
        except Exception:
            traceback.print_exc()  # into this actor's log; the driver prints one line
            raise
        finally:
            self._busy_s += time.perf_counter() - started

    def busy(self) -> float:
        """Seconds spent in calls so far; the rest of an actor's time is waiting for work."""
        return self._busy_s
