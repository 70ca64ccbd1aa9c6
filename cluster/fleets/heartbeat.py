"""Heartbeats apart from work: a thread in every actor says each second that its process lives and what it is at.

They go through the key-value store of the Ray cluster, so a driver reads them although the actor is busy, and no clock
is compared with another: what counts is whether the number of beats has grown since the driver last looked.
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
from typing import Any

import ray
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_put, internal_kv_get_gcs_client
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

EVERY_S = 1.0
DUMP_AFTER_S = 300.0  # a call that takes so long has its stack written to the actor's log, once


class HeartbeatSender:
    """The actor's side."""

    def __init__(self, key: str) -> None:
        self.key = key
        self._doing: tuple[str, float] | None = None
        threading.Thread(target=self._beat, daemon=True, name="heartbeat").start()

    @contextmanager
    def at(self, method: str) -> Iterator[None]:
        self._doing = (method, time.monotonic())
        try:
            yield
        finally:
            self._doing = None

    def _beat(self) -> None:
        count, dumped, node = 0, None, ray.get_runtime_context().get_node_id()
        while True:
            count += 1
            doing = self._doing
            seconds = time.monotonic() - doing[1] if doing else 0.0
            if seconds > DUMP_AFTER_S and doing is not dumped:
                dumped = doing
                faulthandler.dump_traceback(file=2)
            _internal_kv_put(self.key, json.dumps([count, seconds, os.getpid(), node]))
            time.sleep(EVERY_S)


@dataclass
class HeartbeatMonitor:
    """The driver's side: what it last saw of one actor."""

    key: str
    count: int = 0
    seen: float = 0.0
    """When the count was last seen to grow."""
    at_work: float = 0.0
    """Seconds that the actor had been in its present call then."""
    process: Sequence[Any] = ()
    """Process id and Ray node, once they are known."""

    def __post_init__(self) -> None:
        self.seen = time.monotonic()

    @property
    def silence(self) -> float:
        """Seconds since the last sign of life that `listen` has heard; 0 while the process has yet to start, which may wait
        for a new node."""
        return time.monotonic() - self.seen if self.count else 0.0

    def hear(self, raw: bytes) -> None:
        count, self.at_work, *self.process = json.loads(raw)
        if count != self.count:
            self.count, self.seen = count, time.monotonic()

    def kill(self) -> None:
        """Ends the process where it is: one that is stopped does not hear Ray's own wish that it end."""
        if self.process:
            pid, node = self.process
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            ray.remote(_kill).options(num_cpus=0, scheduling_strategy=there).remote(pid)

    def forget(self) -> None:
        _internal_kv_del(self.key)


def listen(pulses: Sequence[HeartbeatMonitor]) -> None:
    """Hears what has come from all of them, in one round trip."""
    found = internal_kv_get_gcs_client().internal_kv_multi_get([pulse.key.encode() for pulse in pulses], None)
    for pulse in pulses:
        if raw := found.get(pulse.key.encode()):
            pulse.hear(raw)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
