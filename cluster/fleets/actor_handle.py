"""An actor as the driver holds it, and the wait for calls on actors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray

from cluster.fleets.heartbeat import HeartbeatMonitor


@dataclass(frozen=True)
class ActorHandle:
    """One actor of a fleet, and what is needed to start another in its place."""

    name: str
    arguments: dict[str, Any]
    """Constructor arguments of the hosted object."""
    incarnation: int
    """How many actors of this name were started before."""
    actor: Any
    """Ray's handle of the `ActorHost`."""
    heartbeat: HeartbeatMonitor


def wait_any(refs: Sequence[ray.ObjectRef], timeout_s: float) -> list[ray.ObjectRef]:
    """Waits until at least one call has ended, or for `timeout_s`; returns all that have ended by
    then."""
    ready, rest = ray.wait(list(refs), timeout=timeout_s)
    if not ready or not rest:
        return ready
    # ray.wait returns at the first: ask once more, without waiting, for the others that have ended
    # too.
    return ray.wait([*ready, *rest], num_returns=len(refs), timeout=0)[0]
