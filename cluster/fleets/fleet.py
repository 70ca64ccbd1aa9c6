"""A fleet: the actors of one kind, how they are called, watched, replaced, added and let go of."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from cluster.config import ClusterConfig
from cluster.fleets.actor_host import ActorHost
from cluster.fleets.heartbeat import HeartbeatMonitor, listen
from common.errors import FleetError, UserError

WATCH_S = 2.0  # how often the driver looks at the heartbeats of those it waits for


@dataclass(frozen=True)
class ActorHandle:
    """One actor of a fleet, and how to start another in its place."""

    name: str
    arguments: dict[str, Any]
    incarnation: int
    actor: Any
    pulse: HeartbeatMonitor


class Fleet:
    """Actors of one kind. `limits` say when one that does not answer is taken for hung."""

    def __init__(
        self,
        kind: str,
        target: str,
        arguments: Sequence[dict[str, Any]],
        options: dict[str, Any],
        logs: Path,
        limits: ClusterConfig | None = None,
    ) -> None:
        self.kind, self.target, self.logs = kind, target, logs
        self.limits = limits or ClusterConfig()
        self._host = ray.remote(ActorHost).options(**options)
        self._hung: set[int] = set()
        self._watched = 0.0
        self._members = [self._member(f"{kind}-{i}", given) for i, given in enumerate(arguments)]
        self._joining: list[tuple[ActorHandle, ray.ObjectRef]] = []

    def _member(self, name: str, arguments: dict[str, Any], incarnation: int = 0) -> ActorHandle:
        pulse = f"zero2hero-{ray.get_runtime_context().get_job_id()}-{id(self)}-{name}-{incarnation}-{time.time_ns()}"
        actor = self._host.remote(name, self.target, str(self.logs / f"{name}.log"), arguments, pulse)
        return ActorHandle(name, arguments, incarnation, actor, HeartbeatMonitor(pulse))

    @property
    def names(self) -> list[str]:
        return [member.name for member in self._members]

    @property
    def expected(self) -> int:
        """Actors, those on their way included."""
        return len(self._members) + len(self._joining)

    def __len__(self) -> int:
        return len(self._members)

    def submit(self, index: int, method: str, *args: Any, **kwargs: Any) -> ray.ObjectRef:
        return self._members[index % len(self)].actor.call.remote(method, *args, **kwargs)

    def submit_split(
        self, index: int, count: int, method: str, *args: Any, **kwargs: Any
    ) -> list[ray.ObjectRef]:
        """A call that returns `count` values, each with a reference of its own."""
        return (
            self._members[index % len(self)]
            .actor.call.options(num_returns=count)
            .remote(method, *args, **kwargs)
        )

    def all(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        """The same call on every actor at once; their results in order."""
        return self.get([self.submit(i, method, *args, **kwargs) for i in range(len(self))], method)

    def get(self, refs: Sequence[ray.ObjectRef] | dict[ray.ObjectRef, int], doing: str) -> list[Any]:
        """Results of calls: of one to each actor in order, or of any with the index of the actor of each. The first failure
        ends the wait: where one rank of a collective has died, the others may wait for ever. Raises UserError if that is
        what the actor raised, else FleetError, also for an actor that hangs."""
        whose = refs if isinstance(refs, dict) else {ref: i for i, ref in enumerate(refs)}
        pending = list(whose)
        found: dict[ray.ObjectRef, Any] = {}
        while pending:
            ready = done(pending, WATCH_S)
            found |= {ref: self.result(ref, whose[ref], doing) for ref in ready}
            pending = [ref for ref in pending if ref not in found]
            if not ready:
                self.watch({whose[ref] for ref in pending}, doing)
        return [found[ref] for ref in whose]

    def result(self, ref: ray.ObjectRef, index: int, doing: str) -> Any:
        """The result of a call that has ended, or its failure as `get` raises it."""
        name = self.names[index % len(self)]
        log = self.logs / f"{name}.log"
        try:
            return ray.get(ref)
        except RayTaskError as fault:
            cause = fault.cause
            if isinstance(cause, UserError):
                raise UserError(str(cause)) from None
            what = f"{type(cause).__name__}: {_first_line(cause)}"
            raise FleetError(f"{name} failed in {doing} ({what}); see {log}") from fault
        except RayError as fault:
            raise FleetError(f"{name} died during {doing} ({_first_line(fault)}); see {log}") from fault

    def watch(self, indexes: Iterable[int], doing: str) -> None:
        """Raises FleetError for an actor whose process has stopped, or whose call takes longer than any should."""
        if time.monotonic() - self._watched < 0.9 * WATCH_S:
            return
        self._watched = time.monotonic()
        chosen = sorted({index % len(self) for index in indexes})
        listen([self._members[i].pulse for i in chosen])
        for i in chosen:
            pulse, limits = self._members[i].pulse, self.limits
            silence = pulse.silence
            if silence > limits.heartbeat_timeout_s:
                what = f"no heartbeat for {silence:.0f} s, over cluster.heartbeat_timeout_s={limits.heartbeat_timeout_s:g}"
            elif pulse.at_work > limits.call_timeout_s:
                what = f"at work for {pulse.at_work:.0f} s, over cluster.call_timeout_s={limits.call_timeout_s:g}; its stack is there"
            else:
                continue
            self._hung.add(i)
            raise FleetError(
                f"{self.names[i]} hangs in {doing} ({what}); see {self.logs / self.names[i]}.log"
            )

    def lost(self, patience: float = 10.0) -> list[int]:
        """Indexes of the actors that are dead or hang. One that is at work does not answer: its heartbeat speaks for it."""
        lost = set(self._hung)
        asked = {m.actor.busy.remote(): i for i, m in enumerate(self._members) if i not in lost}
        deadline, pending = time.monotonic() + patience, list(asked)
        while pending and time.monotonic() < deadline:
            ready, pending = ray.wait(pending, timeout=0.5)
            for ref in ready:
                try:
                    ray.get(ref)
                except RayError:
                    lost.add(asked[ref])
                    deadline = min(deadline, time.monotonic() + 2)  # those that died with it
        listen([self._members[asked[ref]].pulse for ref in pending])
        silent = {
            asked[ref]
            for ref in pending
            if self._members[asked[ref]].pulse.silence > self.limits.heartbeat_timeout_s
        }
        self._hung |= silent
        return sorted(lost | silent)

    def replace(self, index: int) -> None:
        """A new actor in the place of a lost one, with what the first was started with."""
        member = self._members[index]
        self._end(index)
        self._members[index] = self._member(member.name, member.arguments, member.incarnation + 1)

    def grow(self, arguments: dict[str, Any]) -> None:
        """Has one more actor started; it takes no part before `settle`."""
        member = self._member(f"{self.kind}-{self.expected}", arguments)
        self._joining.append((member, member.actor.busy.remote()))

    def settle(self) -> list[str]:
        """Takes in the new actors that have started, in order, and says which; one that failed to start is given up."""
        told = []
        while self._joining and ray.wait([self._joining[0][1]], timeout=0)[0]:
            member, ref = self._joining.pop(0)
            try:
                ray.get(ref)
            except RayError as fault:
                told.append(
                    f"{member.name} failed to start ({_first_line(fault)}); see {self.logs / member.name}.log"
                )
            else:
                self._members.append(member)
                told.append(f"{member.name} has joined")
        return told

    def shrink(self, count: int) -> None:
        """Lets go of all actors but the first `count`; they finish what they have been asked."""
        for member in [*self._members[count:], *(member for member, _ in self._joining)]:
            member.actor.__ray_terminate__.remote()
        del self._members[count:]
        self._joining.clear()

    def busy(self) -> list[float]:
        """Seconds that each actor has spent in calls so far."""
        return self.get([member.actor.busy.remote() for member in self._members], "busy")

    def stop(self) -> None:
        self.shrink(len(self))
        for index in range(len(self)):
            self._end(index)

    def _end(self, index: int) -> None:
        member = self._members[index]
        ray.kill(member.actor)
        if index in self._hung:
            member.pulse.kill()
        member.pulse.forget()
        self._hung.discard(index)


def done(refs: Sequence[ray.ObjectRef], seconds: float) -> list[ray.ObjectRef]:
    """All that are done, as soon as one is or the time is over."""
    ready, rest = ray.wait(list(refs), timeout=seconds)
    return ray.wait([*ready, *rest], num_returns=len(refs), timeout=0)[0] if ready and rest else ready


def utilization(learners: Fleet, tokens_per_second: float) -> dict[str, float]:
    """Model FLOP utilization of the current task, where the device's peak is known."""
    flops, peak = learners.get([learners.submit(0, "flops_per_token")], "flops_per_token")[0]
    return {"perf/mfu": tokens_per_second * flops / (peak * len(learners))} if peak else {}


def _first_line(fault: BaseException | None) -> str:
    return next((line.strip() for line in str(fault).splitlines() if line.strip()), "no message")
