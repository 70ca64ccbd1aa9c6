"""Reserves the placement groups of a layout before actors start, and waits for them.

    reserve     until every group has its place: hosts that an autoscaler adds, another run that ends
    restore     after a loss: until the bundles of a lost host are on another one, where Ray puts them
    request     nothing: for an actor that `hero scale` adds, which starts when its group has a place

Several groups are reserved together or not at all. Ray promises that for the bundles of one group only:
two runs on one cluster could each hold half of what they need, for ever. So whoever has to wait gives
everything back and tries again as the only one who waits (`_alone`).

A Ray that this run has started gets no further hosts, so what does not fit there is refused at once.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.fleets.cluster_hosts import choose_host, free_resources, hosts, node_addresses
from cluster.layout import ActorPlace, Group
from cluster.layout_fit import NoRoomError, describe, fit, largest_first, no_room
from common.errors import FleetError, UserError

FIRST_TRY_S = 2.0
"""How long all groups may take before the run waits in line with other runs."""
FIRST_LINE_S, LINE_S = 10.0, 60.0
"""When the first line about a wait is printed, and the seconds between further ones."""
RELEASE_S = 20.0
"""How long an own Ray may take to return the resources of actors that were stopped."""
POLL_S = 0.25

NAMESPACE, LOCK = "zero2hero", "reserving"


class Waiting:
    """Named actor of the run that waits for groups. It ends with its driver."""


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Reservations:
    """The placement groups of one run. `is_own`: Ray was started by this run."""

    def __init__(
        self, patience_s: float, is_own: bool = False, report: Callable[[str], None] = _print
    ) -> None:
        self.patience_s, self.is_own, self.report = patience_s, is_own, report
        self._groups: dict[str, Group] = {}
        self._placed: dict[str, PlacementGroup] = {}
        self._chosen: dict[str, list[str | None]] = {}
        """Host of each bundle of a group, of those that the layout gives it; None: any."""
        self._order: dict[str, list[int]] = {}
        """Ray's numbers of the bundles of each group, by this project's."""

    def reserve(self, groups: Sequence[Group]) -> None:
        """Reserves those of the groups that are not reserved yet. Raises UserError for what the own Ray
        cannot hold or a host that does not exist, and FleetError if the wait is over."""
        # Large bundles first: Ray places groups in this order, and a small one in the middle of a host
        # would leave no room for a whole engine. `cluster.layout_fit` does the same.
        new = largest_first(group for group in groups if group.name not in self._groups)
        if not new:
            self.restore()
            return
        if self.is_own:
            try:
                fit([*self._groups.values(), *new], hosts())
            except NoRoomError as error:
                raise UserError(f"{error}; {REMEDY}") from None
        self._create(new)
        try:
            if self._are_placed(new, FIRST_TRY_S):
                return
            if self.is_own:
                self._wait(new, RELEASE_S)
                return
            self._remove(new)
            with self._alone():
                self._create(new)
                self._wait(new, self.patience_s)
        except BaseException:
            self._remove(new)
            raise

    def request(self, group: Group) -> None:
        """Asks for a group without waiting for it."""
        self._create([group])

    def restore(self) -> None:
        """Waits until every group has its place again. Raises FleetError if the wait is over."""
        groups = list(self._groups.values())
        if groups and not self._are_placed(groups, 0.0):
            self._wait(groups, RELEASE_S if self.is_own else self.patience_s)

    def release(self, name: str) -> None:
        """Gives a group back; Ray ends the actors that are still in it."""
        if name in self._groups:
            self._remove([self._groups[name]])

    def release_all(self) -> None:
        self._remove(list(self._groups.values()))

    def options(self, place: ActorPlace) -> dict[str, Any]:
        """Ray's options for an actor at this place."""
        group = self._placed[place.group]
        bundles = self.bundles(place)
        # The workers of an engine take the GPUs; the engine itself computes nothing.
        has_workers = len(bundles) > 1
        strategy = PlacementGroupSchedulingStrategy(
            placement_group=group,
            placement_group_bundle_index=bundles[0],
            placement_group_capture_child_tasks=has_workers,
        )
        gpus = 0 if has_workers else place.gpus
        return {"num_cpus": place.cpus, "num_gpus": gpus, "scheduling_strategy": strategy}

    def bundles(self, place: ActorPlace) -> list[int]:
        """Ray's numbers of the bundles of a place."""
        order = self._order.get(place.group)
        if order is None:
            group = self._groups[place.group]
            nodes = placement_group_table(self._placed[place.group])["bundles_to_node_id"]
            # Bundles side by side are on one host: ranks of an engine, and of a learner's neighbours. Ray
            # numbers them as it likes (ray issue 51117). Kept, as actors stay where they are when a host
            # is lost.
            first: dict[str, int] = {}
            for bundle in range(len(group.bundles)):
                first.setdefault(nodes.get(bundle, ""), bundle)
            is_pinned = any(bundle.host for bundle in group.bundles)
            order = list(range(len(group.bundles)))
            if not is_pinned:
                order.sort(key=lambda bundle: (first[nodes.get(bundle, "")], bundle))
            if all(nodes.get(bundle) for bundle in order):
                self._order[place.group] = order
        return [order[bundle] for bundle in place.bundles]

    def _create(self, groups: Sequence[Group]) -> None:
        addresses = node_addresses()
        for group in groups:
            bundles = []
            chosen = [choose_host(bundle, addresses) for bundle in group.bundles]
            for bundle, host in zip(group.bundles, chosen, strict=True):
                resources = dict(bundle.resources)
                if bundle.host:
                    if host is None:
                        named, known = ", ".join((bundle.host, *bundle.others)), ", ".join(sorted(addresses))
                        raise UserError(
                            f"cluster.layout: no host {named} in the cluster (for {group.name}); it "
                            f"has {known}"
                        )
                    if host != bundle.host:
                        self.report(f"{group.name}: host {bundle.host} is not in the cluster, so on {host}")
                    # Every Ray node has one of a resource of its address.
                    resources[f"node:{addresses[host]}"] = 0.001
                bundles.append(resources)
            self._chosen[group.name] = chosen
            self._placed[group.name] = placement_group(bundles, strategy=group.strategy)
            self._groups[group.name] = group

    def _move(self, names: Iterable[str]) -> None:
        """Asks anew for those of the groups that have a bundle on a host which has left the cluster, if the
        layout names others that are there."""
        addresses = node_addresses()
        for name in names:
            group = self._groups[name]
            is_lost, has_others = False, True
            for bundle, host in zip(group.bundles, self._chosen[name], strict=True):
                is_lost = is_lost or (host is not None and host not in addresses)
                has_others = has_others and (not bundle.host or choose_host(bundle, addresses) is not None)
            if is_lost and has_others:
                self._remove([group])
                self._create([group])

    def _remove(self, groups: Sequence[Group]) -> None:
        for group in groups:
            placed = self._placed.pop(group.name, None)
            if placed is not None and ray.is_initialized():
                remove_placement_group(placed)
            self._groups.pop(group.name, None)
            self._chosen.pop(group.name, None)
            self._order.pop(group.name, None)

    def _are_placed(self, groups: Sequence[Group], seconds: float) -> bool:
        """Whether all groups have their places within this time."""
        deadline = time.monotonic() + seconds
        while True:
            if not self._pending(groups):
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)

    def _pending(self, groups: Sequence[Group]) -> dict[str, str]:
        """The groups without a place, with Ray's reason."""
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        pending = {}
        for group in groups:
            table = placement_group_table(self._placed[group.name])
            # Ray says CREATED for some seconds after a host was lost.
            nodes = set(table["bundles_to_node_id"].values())
            if table["state"] != "CREATED" or not nodes <= alive:
                pending[group.name] = table["stats"].get("scheduling_state") or table["state"]
        return pending

    def _wait(self, groups: Sequence[Group], patience_s: float) -> None:
        """Until every group has its place; a line a minute says which has none. Raises FleetError, or
        UserError in an own Ray."""
        started, next_line = time.monotonic(), FIRST_LINE_S
        while pending := self._pending(groups):
            self._move(pending)
            waited_s = time.monotonic() - started
            if waited_s >= next_line or waited_s >= patience_s:
                next_line = waited_s + LINE_S
                line = self._explain(pending)
                if waited_s >= patience_s:
                    if self.is_own:
                        raise UserError(f"{line}; {REMEDY}")
                    raise FleetError(f"{line}; waited {waited_s:.0f} s, over cluster.patience_s; {REMEDY}")
                self.report(f"waiting: {line}; {waited_s:.0f} s of cluster.patience_s={patience_s:g}")
            time.sleep(POLL_S)

    def _explain(self, pending: dict[str, str]) -> str:
        """What is missing: the first group in full, the others by name."""
        name, state = next(iter(pending.items()))
        text = f"{no_room(self._groups[name], hosts())}, free are: {free_resources()} ({state})"
        others = [f"{other} ({describe(self._groups[other])})" for other in list(pending)[1:]]
        return f"{text}; also {', '.join(others)}" if others else text

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Inside it, no other run of this project waits while it holds groups."""
        started, next_line = time.monotonic(), FIRST_LINE_S
        lock = None
        while lock is None:
            try:
                actor = ray.remote(num_cpus=0)(Waiting)
                lock = actor.options(name=LOCK, namespace=NAMESPACE).remote()  # type: ignore[attr-defined]
            except ValueError:  # the name is taken
                waited_s = time.monotonic() - started
                if waited_s >= self.patience_s:
                    raise FleetError(
                        f"another run of this cluster has been waiting for resources for {waited_s:.0f} s, "
                        "over cluster.patience_s; runs that do not fit the cluster wait one after the other"
                    ) from None
                if waited_s >= next_line:
                    next_line = waited_s + LINE_S
                    self.report(f"waiting: another run waits for resources first; {waited_s:.0f} s")
                time.sleep(1)
        try:
            yield
        finally:
            ray.kill(lock)


REMEDY = (
    "lower the numbers in sections learners, rollout and scoring, share GPUs by cluster.layout, or add nodes"
)
