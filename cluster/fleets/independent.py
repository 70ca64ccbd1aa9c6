"""Waiting for calls of a fleet that do not depend on each other: one that fails does not end the wait for
the others, as it does in `Fleet.wait`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray

from cluster.fleets.actor_handle import wait_any
from cluster.fleets.fleet import WATCH_S, Fleet
from common.errors import FleetError, HeroError


def wait_each(
    fleet: Fleet, refs: Mapping[ray.ObjectRef, int], doing: str
) -> tuple[dict[int, Any], dict[int, HeroError]]:
    """Results and errors of calls, by the index of the actor. `refs` maps each call to that index; `doing`
    names the call in messages. An actor that hangs is an error as well."""
    pending = dict(refs)
    results: dict[int, Any] = {}
    errors: dict[int, HeroError] = {}
    while pending:
        ready = wait_any(list(pending), WATCH_S)
        for ref in ready:
            index = pending.pop(ref)
            try:
                results[index] = fleet.result(ref, index, doing)
            except HeroError as error:
                errors[index] = error
        if ready:
            continue
        try:
            fleet.watch(pending.values(), doing)
        except FleetError as error:
            # One at a time: the message names the first that hangs.
            for ref, index in list(pending.items()):
                if fleet.is_hung(index):
                    errors[index] = error
                    del pending[ref]
    return results, errors
