"""How the weights of the learners reach every engine, by the transport that the run has.

    BucketRoute      learners ─send_bucket k─► payload ─update_weights k─► engines, while the learners
                     gather bucket k + 1            (file, object_store, ipc)
    BroadcastRoute   learners ═broadcast_weights═► engines: one call on each side    (broadcast)

An engine that fails does not stop the update of the others: after `push` they hold the new version, and
the error names the one that failed, which `FleetManager.replace_lost` then replaces. If a learner fails,
the engines that had begun hold neither version, so they are ended, to be replaced as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import ray

from actors.config import SyncConfig
from actors.weights.files import iter_weights
from actors.weights.payload import WeightPayload
from actors.weights.transport import WeightTransport
from cluster.fleets.independent import wait_each
from cluster.fleets.learner_fleet import LearnerFleet
from cluster.fleets.manager import FleetManager
from cluster.fleets.rollout_fleet import RolloutFleet
from common.errors import FleetError, HeroError
from learners.model_paths import model_folder
from learners.named_tensors import NamedTensors


class WeightRoute(Protocol):
    """Moves the policy of the learners into every engine."""

    def push(self, version: int, min_version: int) -> None:
        """Returns when all engines hold the weights; groups begun before `min_version` are dropped.
        Raises the error of an engine or a learner that failed."""
        ...


class BucketRoute:
    """Bucket by bucket: engines load one while the learners gather the next."""

    def __init__(
        self,
        learners: LearnerFleet,
        rollouts: RolloutFleet,
        transport: WeightTransport,
        base: str | None = None,
    ) -> None:
        """`base` is the folder of the model that adapters belong to, where they are sent alone."""
        self.learners, self.rollouts, self.transport, self.base = learners, rollouts, transport, base

    def push(self, version: int, min_version: int) -> None:
        loading = EngineUpdates(self.rollouts, version, min_version)
        number, last = 0, False
        while not last:
            # A buffer that engines map is written again only after all of them have read it.
            if self.transport.kind == "ipc":
                loading.wait()
            try:
                payload, arrays = self.learners.send_bucket(self.transport, version, number)
            except HeroError:
                loading.abandon()
                raise
            loading.wait()
            loading.submit(replace(payload, base=self.base), arrays)
            number, last = number + 1, payload.last
        loading.wait()
        if self.transport.kind == "ipc":
            self.learners.free_buffers()
        loading.raise_errors()


class EngineUpdates:
    """The calls of one update to all engines. One that fails gets no further buckets."""

    def __init__(self, rollouts: RolloutFleet, version: int, min_version: int) -> None:
        self.rollouts, self.version, self.min_version = rollouts, version, min_version
        self.errors: dict[int, HeroError] = {}
        self._refs: dict[ray.ObjectRef, int] = {}
        self._begun = False

    def submit(self, payload: WeightPayload, arrays: ray.ObjectRef | None = None) -> None:
        """Starts to load a bucket into every engine that has not failed."""
        self._begun = True
        for index in range(len(self.rollouts)):
            if index not in self.errors:
                arguments = (payload, self.version, self.min_version, arrays)
                self._refs[self.rollouts.submit_update(index, *arguments)] = index

    def wait(self) -> None:
        """Waits until all engines have loaded what was submitted, or failed."""
        self.errors |= wait_each(self.rollouts, self._refs, "update_weights")[1]
        self._refs.clear()

    def abandon(self) -> None:
        """Ends the engines that have begun the update, since nothing can complete it."""
        if self._begun:
            for index in range(len(self.rollouts)):
                self.rollouts.kill(index)

    def raise_errors(self) -> None:
        """Raises the error of the engine that failed, or one error for several."""
        errors = list(self.errors.values())
        if len(errors) > 1 and all(isinstance(error, FleetError) for error in errors):
            raise FleetError("; ".join(str(error) for error in errors))
        if errors:
            raise errors[0]


class BroadcastRoute:
    """Over links between learner rank 0 and the workers of each engine. A link is made before the first
    update of an engine's process and used for all that follow."""

    def __init__(
        self,
        learners: LearnerFleet,
        rollouts: RolloutFleet,
        config: SyncConfig,
        base: str | None = None,
    ) -> None:
        """`base` is the folder of the model that adapters belong to, where they are sent alone."""
        self.learners, self.rollouts, self.config, self.base = learners, rollouts, config, base
        self._linked: set[tuple[str, str]] = set()
        """`Fleet.identities` of the engines that have a link."""

    def push(self, version: int, min_version: int) -> None:
        self._link_new_engines()
        payload = WeightPayload("broadcast", base=self.base)
        loading = EngineUpdates(self.rollouts, version, min_version)
        loading.submit(payload)
        max_bytes, adapters_only = self.config.bucket_mib << 20, self.base is not None
        sending = self.learners.submit_broadcast(self.rollouts.names, max_bytes, adapters_only)
        try:
            broken = self.learners.wait(sending, "broadcast_weights")[0]
        except HeroError:
            loading.abandon()
            raise
        # An engine whose link is broken may still wait for bytes that will never come.
        for index, identity in enumerate(self.rollouts.identities):
            if identity[0] in broken:
                self._linked.discard(identity)
                self.rollouts.kill(index)
        loading.wait()
        loading.raise_errors()

    def _link_new_engines(self) -> None:
        """Makes links for engines that have none: all at first, later those of restarted or added
        processes. Raises FleetError if one does not join; it is then ended."""
        indexes = {}
        for index, identity in enumerate(self.rollouts.identities):
            if identity not in self._linked:
                indexes[identity[0]] = index
        if not indexes:
            return
        workers = {engine["name"]: engine["workers"] for engine in self.rollouts.ready()}
        timeout_s = self.config.timeout_s
        engines = {name: workers[name] for name in indexes}
        addresses = self.learners.open_links(engines, timeout_s)
        joining = {}
        for name, index in indexes.items():
            joining[self.rollouts.submit_join_link(index, addresses[name], timeout_s)] = index
        accepting = self.learners.submit_accept_links(list(indexes))
        failed = self.learners.wait(accepting, "accept_links")[0]
        for name in failed:
            self.rollouts.kill(indexes[name])
        self.rollouts.wait(joining, "join_link")
        self._linked = set(self.rollouts.identities)


def make_route(
    fleets: FleetManager, learners: LearnerFleet, rollouts: RolloutFleet, policy: Path
) -> WeightRoute:
    """The route of a run. `policy` is the folder that the learners started from."""
    kind, sync = fleets.transport_kind(), fleets.config.sync
    base = str(model_folder(policy)) if sync.adapters_only else None
    if kind == "broadcast":
        return BroadcastRoute(learners, rollouts, sync, base)
    return BucketRoute(learners, rollouts, fleets.bucket_transport(kind), base)


def push_folder(rollouts: RolloutFleet, folder: Path, version: int, transport: WeightTransport) -> None:
    """Loads a Hugging Face folder that this process sees into every engine, by files or through the object
    store."""
    loading = EngineUpdates(rollouts, version, 0)
    for number, (bucket, last) in enumerate(_folder_buckets(folder, transport.max_bytes)):
        payload, data = transport.send(bucket, version, number, last)
        assert payload is not None
        loading.wait()
        arrays = None
        if data is not None:
            arrays = ray.put(data)
        loading.submit(payload, arrays)
    loading.wait()
    loading.raise_errors()


def _folder_buckets(folder: Path, max_bytes: int) -> Iterator[tuple[NamedTensors, bool]]:
    """(bucket, whether it is the last) of a folder's weights."""
    bucket: NamedTensors = []
    size = 0
    for name, tensor in iter_weights(folder):
        if bucket and size + tensor.nbytes > max_bytes:
            yield bucket, False
            bucket, size = [], 0
        bucket.append((name, tensor))
        size += tensor.nbytes
    yield bucket, True
