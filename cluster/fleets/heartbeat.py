"""Heartbeats: a thread in every actor reports once a second that its process lives and how long its
call has lasted.

Reports go through the key-value store of the Ray cluster (its GCS), so the driver reads them
although the actor is busy. No two clocks are compared: an actor is alive if its count of beats has
grown since the driver last looked.

The store's functions are private to Ray (`_internal_kv_*`). They stay because Ray has no public way
to read the state of 256 actors in one round trip: a call to each actor costs 256 round trips for
every look, and threads for it in every actor; an actor that collects the reports would be one more
process that can die and needs a heartbeat itself.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import ray
from ray.experimental.internal_kv import (
    _internal_kv_del,
    _internal_kv_put,
    internal_kv_get_gcs_client,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.config import ClusterConfig

INTERVAL_S = 1.0
DUMP_AFTER_S = 300.0
"""A call that lasts longer has its stack written to the actor's log, once."""


class HeartbeatSender:
    """The actor's side: starts a thread that writes [count, seconds in the current call, process
    id, Ray node] under `key`."""

    def __init__(self, key: str) -> None:
        self.key = key
        self._call: tuple[str, float] | None = None
        threading.Thread(target=self._send, daemon=True, name="heartbeat").start()

    @contextmanager
    def during(self, method: str) -> Iterator[None]:
        """Reports the block as one call."""
        self._call = (method, time.monotonic())
        try:
            yield
        finally:
            self._call = None

    def _send(self) -> None:
        count, dumped, node_id = 0, None, ray.get_runtime_context().get_node_id()
        while True:
            count += 1
            # Read once: the main thread may replace it meanwhile.
            call, call_s = self._call, 0.0
            if call is not None:
                call_s = time.monotonic() - call[1]
            if call_s > DUMP_AFTER_S and call is not dumped:
                dumped = call
                faulthandler.dump_traceback(file=2)
            # While the network fails the store does not answer; the reports go on after it.
            with suppress(Exception):
                _internal_kv_put(self.key, json.dumps([count, call_s, os.getpid(), node_id]))
            time.sleep(INTERVAL_S)


@dataclass
class HeartbeatMonitor:
    """The driver's side: the last report of one actor. `poll` updates it."""

    key: str
    count: int = 0
    last_beat: float = 0.0
    """Time (monotonic clock of the driver) at which the count was last found to have grown."""
    call_s: float = 0.0
    """Seconds that the actor's current call had lasted then; 0 between calls."""
    pid: int | None = None
    node_id: str | None = None
    """Ray node of the process."""

    def __post_init__(self) -> None:
        self.last_beat = time.monotonic()

    @property
    def age_s(self) -> float:
        """Seconds since the last sign of life that `poll` has read; 0 while the process has yet to
        start, which may wait for a new node."""
        if self.count == 0:
            return 0.0
        return time.monotonic() - self.last_beat

    @property
    def start_s(self) -> float:
        """Seconds for which the process has been waited for; 0 once it has started."""
        if self.count:
            return 0.0
        return time.monotonic() - self.last_beat

    def hang_reason(self, limits: ClusterConfig) -> str | None:
        """Why the actor counts as hung; None if it does not."""
        if self.start_s > (start_limit := max(limits.patience_s, limits.heartbeat_timeout_s)):
            return f"not started after {self.start_s:.0f} s, over cluster.patience_s={start_limit:g}"
        if self.age_s > limits.heartbeat_timeout_s:
            limit = f"cluster.heartbeat_timeout_s={limits.heartbeat_timeout_s:g}"
            return f"no heartbeat for {self.age_s:.0f} s, over {limit}"
        if self.call_s > limits.call_timeout_s:
            limit = f"cluster.call_timeout_s={limits.call_timeout_s:g}"
            return f"in this call for {self.call_s:.0f} s, over {limit}; its stack is there"
        return None

    def update(self, report: bytes) -> None:
        count, self.call_s, self.pid, self.node_id = json.loads(report)
        if count != self.count:
            self.count, self.last_beat = count, time.monotonic()

    def kill_process(self) -> None:
        """Kills the process by a task on its node: a stopped process (SIGSTOP) does not react to
        `ray.kill`."""
        if self.pid is not None and self.node_id is not None:
            on_node = NodeAffinitySchedulingStrategy(self.node_id, soft=False)
            ray.remote(_kill).options(num_cpus=0, scheduling_strategy=on_node).remote(self.pid)

    def delete(self) -> None:
        """Removes the report from the store."""
        _internal_kv_del(self.key)


def poll(monitors: Sequence[HeartbeatMonitor]) -> None:
    """Reads the reports of all of them in one round trip."""
    keys = [monitor.key.encode() for monitor in monitors]
    reports = internal_kv_get_gcs_client().internal_kv_multi_get(keys, None)
    for monitor, key in zip(monitors, keys, strict=True):
        report = reports.get(key)
        if report:
            monitor.update(report)


def _kill(pid: int) -> None:
    # It may have ended since its last report.
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
