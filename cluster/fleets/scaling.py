"""Follows `hero scale` (`cluster.fleets.scale`): starts or ends actors of the fleets of a run at work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray

from cluster.config import RunConfig
from cluster.fleets.fleet import Fleet
from cluster.fleets.reservation import Reservations
from cluster.fleets.scale import scale_requests
from cluster.layout import own_group, shares_learners
from common.run_paths import RunPaths

ArgumentsOf = Callable[[int], dict[str, Any]]
"""Constructor arguments of the i-th actor of a fleet."""


class Scaling:
    """Sizes of the fleets of one run; `fleets` is the manager's, by kind."""

    def __init__(self, config: RunConfig, paths: RunPaths, fleets: dict[str, Fleet]) -> None:
        self.config, self.paths, self._fleets = config, paths, fleets
        self.arguments_of: dict[str, ArgumentsOf] = {}
        """Of the fleets whose size may change."""
        # The request that was last applied, by kind of fleet.
        self._applied: dict[str, int] = {}
        self._refused: set[str] = set()
        # Actors that leave: each with a reference that is ready once it has ended.
        self._leaving: dict[str, ray.ObjectRef] = {}

    def target_size(self, kind: str) -> int:
        """Number of actors that a fleet is to have: what `hero scale` last requested, else what it
        has."""
        if shares_learners(self.config, kind):
            return self._fleets[kind].expected_size
        return scale_requests(self.paths).get(kind, self._fleets[kind].expected_size)

    def apply(self, reservations: Reservations) -> list[str]:
        """Starts or removes actors as requested, admits those that have started, and returns what
        was done as messages."""
        messages = self._refused_requests()
        self._release_left(reservations)
        for kind, arguments_of in self.arguments_of.items():
            fleet, target = self._fleets[kind], self.target_size(kind)
            if target == self._applied.get(kind, fleet.expected_size):
                # A request is applied once: actors that cannot start would be tried again in every
                # iteration.
                target = fleet.expected_size
            else:
                messages.append(f"{kind} fleet: from {fleet.expected_size} to {target}")
                self._applied[kind] = target
            if target < fleet.expected_size:
                self._leaving |= fleet.remove(min(target, len(fleet)))
            while fleet.expected_size < target:
                self._request_group(reservations, kind, fleet.expected_size)
                fleet.add(arguments_of(fleet.expected_size))
            messages += fleet.admit_started()
        return messages

    def _refused_requests(self) -> list[str]:
        """A message for each request that a fleet on the learners' GPUs cannot follow, once."""
        requested = scale_requests(self.paths)
        kinds = [kind for kind in self._fleets if kind in requested and shares_learners(self.config, kind)]
        new, self._refused = set(kinds) - self._refused, set(kinds)
        text = "on the learners' GPUs, whose number does not change (cluster.layout)"
        return [f"{kind} fleet: stays at {len(self._fleets[kind])}; it is {text}" for kind in sorted(new)]

    def _request_group(self, reservations: Reservations, kind: str, index: int) -> None:
        """Asks for the group of an actor that is added."""
        group = own_group(self.config, kind, index)
        if group is not None:
            reservations.release(group.name)  # of an actor of this number that has not quite ended
            reservations.request(group)

    def _release_left(self, reservations: Reservations) -> None:
        """Gives back the groups of actors that have left, which would end with them."""
        for name, end in list(self._leaving.items()):
            if ray.wait([end], timeout=0)[0]:
                del self._leaving[name]
                reservations.release(name)
