"""Waits until it is known of a host that does not answer whether it is lost.

A host whose network fails looks the same for the first minute as one that is lost. Ray believes in it
until it has missed several health checks (with Ray's settings after 65 s, `RAY_health_check_*`), and would
start replacements there, of which nobody would ever hear. Called by `FleetManager.replace_lost` before it
starts any.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

POLL_S = 0.5
QUIET_S = 10.0
"""A host that answers within this time is not worth a line."""


def wait_for_hosts(nodes: Iterable[str], patience_s: float, report: Callable[[str], None]) -> None:
    """Returns when each of these Ray nodes answers or has been given up by Ray, or after `patience_s`."""
    asked = {node: _ask(node) for node in nodes}
    started, is_told = time.monotonic(), False
    while asked:
        for node, answer in list(asked.items()):
            if _is_known(node, answer):
                del asked[node]
            elif ray.wait([answer], timeout=0)[0]:
                asked[node] = _ask(node)  # the network failed while it was asked
        if not asked:
            return
        waited_s = time.monotonic() - started
        if waited_s > patience_s:
            return
        if waited_s > QUIET_S and not is_told:
            is_told = True
            names = ", ".join(sorted(_name(node) for node in asked))
            report(f"waiting: {names} does not answer; until it does, or Ray gives it up")
        time.sleep(POLL_S)


def _ask(node: str) -> ray.ObjectRef:
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(_answer).options(num_cpus=0, scheduling_strategy=there, max_retries=0).remote()


def _is_known(node: str, answer: ray.ObjectRef) -> bool:
    """Whether the node has answered, or is no longer part of the cluster."""
    if node not in {alive["NodeID"] for alive in ray.nodes() if alive["Alive"]}:
        return True
    if not ray.wait([answer], timeout=0)[0]:
        return False
    try:
        ray.get(answer)
    except RayError:
        return False
    return True


def _name(node: str) -> str:
    for known in ray.nodes():
        if known["NodeID"] == node:
            return f"host {known['NodeManagerHostname']} ({known['NodeManagerAddress']})"
    return node


def _answer() -> None:
    pass
