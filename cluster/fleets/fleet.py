"""A fleet: the actors of one kind. Calls them, watches their heartbeats, restarts, adds and removes
them.

The typed fleets (`learner_fleet`, `rollout_fleet`, `scoring_fleet`) are the interface for stages;
this module is what they share. `cluster.fleets.manager` builds fleets and decides when lost actors
are replaced. What a fleet waits for:

    wait            results of calls, and meanwhile heartbeats: a dead or hung actor ends the wait
    dead_or_hung    an answer of every actor, or for one that is busy its heartbeat
    admit_started   nothing: it takes those that are ready

An actor as its fleet knows it:

    scale request
      │ add
      ▼      admit_started              remove
    starting ────────────► healthy ────────────► ended after its last call
      │ fails               │   ▲
      ▼                     ▼   │ restart: a new process with the same name
    reported              dead, hung

Fails: its constructor raised (`ActorHost`). It answers every call with that error, which ends the
run, since the next start would only raise it again.
Dead: Ray reports that its process has ended. Hung: no heartbeat for `cluster.heartbeat_timeout_s`,
one call that lasts longer than `cluster.call_timeout_s`, a connection that broke during a call, or no
place to start at for `cluster.patience_s`. Actors of a new fleet are members at
once: Ray queues calls until they have started. Learners are not restarted one by one: their process
group dies with the first rank (see `FleetManager.replace_lost`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

from cluster.config import ClusterConfig
from cluster.fleets.actor_handle import ActorHandle, wait_any
from cluster.fleets.actor_host import ActorHost
from cluster.fleets.failures import failure
from cluster.fleets.heartbeat import HeartbeatMonitor, poll
from common.errors import FleetError

WATCH_S = 2.0
"""Seconds between two looks at the heartbeats of the actors that the driver waits for."""


class Fleet:
    """Actors that host objects of the class `target` ("module:Class"), one for each entry of
    `arguments`. `limits` say when one that does not answer counts as hung. `options` are Ray's
    (num_cpus, num_gpus, runtime_env), or a function that gives those of the actor of a number."""

    needs_run_directory = False
    """Whether actors write into it, so that their hosts must share it with the driver."""

    def __init__(
        self,
        kind: str,
        target: str,
        arguments: Sequence[dict[str, Any]],
        options: dict[str, Any] | Callable[[int], dict[str, Any]],
        logs: Path,
        limits: ClusterConfig | None = None,
    ) -> None:
        self.kind, self.target, self.logs = kind, target, logs
        self.limits = limits or ClusterConfig()
        self.before_call: Callable[[str], None] | None = None
        """Called with the method before each call to an actor (`cluster.turns`)."""
        self._host, self._options = ray.remote(ActorHost), options
        # Members that were found hung and not yet restarted. Ray does not report them as dead.
        self._hung: set[int] = set()
        self._last_watch = 0.0
        self._starting: list[tuple[ActorHandle, ray.ObjectRef]] = []
        self._members: list[ActorHandle] = []
        # All at once, so that they load their models in parallel.
        for index, actor_arguments in enumerate(arguments):
            self._members.append(self._start_actor(index, actor_arguments))

    def _start_actor(self, index: int, arguments: dict[str, Any], incarnation: int = 0) -> ActorHandle:
        name, options = f"{self.kind}-{index}", self._options
        if callable(options):
            options = options(index)
        # The key is new for every process, so that a late beat of a killed one is not taken for its
        # successor's.
        job = ray.get_runtime_context().get_job_id()
        key = f"zero2hero-{job}-{id(self)}-{name}-{incarnation}-{time.time_ns()}"
        # Returns at once: Ray creates the actor when its resources are free.
        host = self._host.options(**options)
        actor = host.remote(name, self.target, str(self._log(name)), arguments, key, self.needs_run_directory)
        return ActorHandle(name, arguments, incarnation, actor, HeartbeatMonitor(key))

    def _log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    @property
    def names(self) -> list[str]:
        return [member.name for member in self._members]

    @property
    def identities(self) -> list[tuple[str, str]]:
        """(name, key) of each actor: another process of the same name has another key."""
        return [(member.name, member.heartbeat.key) for member in self._members]

    @property
    def expected_size(self) -> int:
        """Number of actors, with those that are still starting."""
        return len(self._members) + len(self._starting)

    def __len__(self) -> int:
        return len(self._members)

    def submit(self, index: int, method: str, *args: Any, **kwargs: Any) -> ray.ObjectRef:
        """Starts a call on one actor; an index past the last wraps around."""
        if self.before_call:
            self.before_call(method)
        return self._members[index % len(self)].actor.call.remote(method, *args, **kwargs)

    def submit_split(
        self, index: int, count: int, method: str, *args: Any, **kwargs: Any
    ) -> list[ray.ObjectRef]:
        """Starts a call that returns `count` values, each with a reference of its own."""
        if self.before_call:
            self.before_call(method)
        call = self._members[index % len(self)].actor.call.options(num_returns=count)
        return call.remote(method, *args, **kwargs)

    def submit_all(self, method: str, *args: Any, **kwargs: Any) -> list[ray.ObjectRef]:
        """Starts the same call on every actor; references in the order of the actors."""
        return [self.submit(index, method, *args, **kwargs) for index in range(len(self))]

    def all(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Makes the same call on every actor at once; results in the order of the actors."""
        return self.wait(self.submit_all(method, *args, **kwargs), method)

    def call_some(self, indexes: Iterable[int] | None, method: str, *args: Any) -> list[Any]:
        """Makes the same call on some actors (None: all) at once; results in their order."""
        if indexes is None:
            indexes = range(len(self))
        return self.wait({self.submit(index, method, *args): index for index in indexes}, method)

    def wait(self, refs: Sequence[ray.ObjectRef] | dict[ray.ObjectRef, int], doing: str) -> list[Any]:
        """Results of calls, in the order of `refs`: either one call to each actor in order, or a
        map from each call to the index of its actor. `doing` names the call in messages.

        The first failure ends the wait: where one rank of a collective has died, the others may
        never return. An error of the project that an actor raised is raised here as the same class
        with the same message. Raises FleetError for any other failure, also of an actor that has
        died or hangs."""
        index_of = refs
        if not isinstance(index_of, dict):
            index_of = {ref: index for index, ref in enumerate(refs)}
        pending = list(index_of)
        results: dict[ray.ObjectRef, Any] = {}
        while pending:
            ready = wait_any(pending, WATCH_S)
            for ref in ready:
                results[ref] = self.result(ref, index_of[ref], doing)
            pending = [ref for ref in pending if ref not in results]
            # While results keep arriving, heartbeats are not needed.
            if not ready:
                self.watch({index_of[ref] for ref in pending}, doing)
        return [results[ref] for ref in index_of]

    def result(self, ref: ray.ObjectRef, index: int, doing: str) -> Any:
        """The result of a call that has ended; raises as `wait` does if it failed."""
        name = self.names[index % len(self)]
        try:
            return ray.get(ref)
        except RayError as error:
            if isinstance(error, ActorUnavailableError):
                # Its connection broke. It may be alive, but nobody knows how much of the call it has done.
                self._hung.add(index % len(self))
            raise failure(error, name, doing, self._log(name)) from error

    def watch(self, indexes: Iterable[int], doing: str) -> None:
        """Raises FleetError if one of these actors hangs. Reads heartbeats at most once in WATCH_S,
        so that it may be called in a loop."""
        if time.monotonic() - self._last_watch < 0.9 * WATCH_S:
            return
        self._last_watch = time.monotonic()
        watched = sorted({index % len(self) for index in indexes})
        poll([self._members[index].heartbeat for index in watched])
        for index in watched:
            reason = self._members[index].heartbeat.hang_reason(self.limits)
            if reason is None:
                continue
            self._hung.add(index)
            name = self.names[index]
            raise FleetError(f"{name} hangs in {doing} ({reason}); see {self._log(name)}")

    def is_hung(self, index: int) -> bool:
        """Whether `watch` has found that an actor hangs."""
        return index in self._hung

    def dead_or_hung(self, patience_s: float = 10.0) -> list[int]:
        """Indexes of the actors that are dead or hung. An actor that is in a call does not answer
        within `patience_s`; its heartbeat decides."""
        lost = set(self._hung)
        index_of = {}
        # Any method would do: an actor that answers is alive.
        for index, member in enumerate(self._members):
            if index not in lost:
                index_of[member.actor.busy.remote()] = index
        deadline, pending = time.monotonic() + patience_s, list(index_of)
        while pending and time.monotonic() < deadline:
            ready, pending = ray.wait(pending, timeout=0.5)
            for ref in ready:
                try:
                    ray.get(ref)
                except RayTaskError:
                    pass  # it has answered
                except RayError:
                    lost.add(index_of[ref])
                    # A lost node takes several actors, and Ray reports their deaths within a second
                    # or two.
                    deadline = min(deadline, time.monotonic() + 2)
        silent = [index_of[ref] for ref in pending]
        poll([self._members[index].heartbeat for index in silent])
        for index in silent:
            if self._members[index].heartbeat.age_s > self.limits.heartbeat_timeout_s:
                self._hung.add(index)
        return sorted(lost | self._hung)

    def nodes_of_hung(self) -> set[str]:
        """Ray nodes of the actors that were found hung: their hosts may be cut off."""
        poll([self._members[index].heartbeat for index in self._hung])
        nodes = {self._members[index].heartbeat.node_id for index in self._hung}
        return {node for node in nodes if node is not None}

    def restart(self, index: int) -> None:
        """Starts a new actor in the place of a lost one, with the same arguments."""
        member = self._members[index]
        self._kill(index)
        incarnation = member.incarnation + 1
        self._members[index] = self._start_actor(index, member.arguments, incarnation)

    def kill(self, index: int) -> None:
        """Ends an actor that cannot be used any more; `dead_or_hung` then has it."""
        ray.kill(self._members[index].actor)

    def add(self, arguments: dict[str, Any]) -> None:
        """Starts one more actor; it gets no calls before `admit_started`."""
        member = self._start_actor(self.expected_size, arguments)
        self._starting.append((member, member.actor.check_started.remote()))

    def admit_started(self) -> list[str]:
        """Makes the added actors that have started members, in order. Returns a message for each,
        also for those that failed to start, which are given up."""
        messages = []
        while self._starting and ray.wait([self._starting[0][1]], timeout=0)[0]:
            member, ref = self._starting.pop(0)
            try:
                ray.get(ref)
            except RayError as error:
                messages.append(str(failure(error, member.name, "start", self._log(member.name))))
                ray.kill(member.actor)
            else:
                self._members.append(member)
                messages.append(f"{member.name} has joined")
        return messages

    def remove(self, size: int) -> dict[str, ray.ObjectRef]:
        """Ends all actors but the first `size`, after the calls that were submitted to them. Returns for
        each a reference that is ready once it has ended."""
        # __ray_terminate__ is a call like any other, so it waits for those before it.
        starting = [member for member, _ in self._starting]
        ends = {}
        for member in [*self._members[size:], *starting]:
            ends[member.name] = member.actor.__ray_terminate__.remote()
        del self._members[size:]
        self._starting.clear()
        return ends

    def busy(self) -> list[float]:
        """Seconds that each actor has spent in calls so far."""
        return self.wait([member.actor.busy.remote() for member in self._members], "busy")

    def stop(self) -> None:
        """Kills all actors."""
        self.remove(len(self))
        for index in range(len(self)):
            self._kill(index)

    def _kill(self, index: int) -> None:
        member = self._members[index]
        ray.kill(member.actor)
        if index in self._hung:
            member.heartbeat.kill_process()
        member.heartbeat.delete()
        self._hung.discard(index)
