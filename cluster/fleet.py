"""Starts Ray and the three fleets of a run, and keeps them while stages come and go.

A fleet is started when a stage first asks for it and reused by later stages: the processes stay, their tasks and
weights change. On CPU the phases of an iteration take turns, so learners reserve the cores and the other fleets
run beside them; on GPUs every actor reserves its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from actors.config import Decoding
from actors.ray_session import start_ray
from actors.weights import make_transport
from cluster.config import ClusterConfig, RunConfig
from cluster.heartbeat import Pulse
from cluster.host import Host
from learners.errors import FleetError, UserError
from serve.files import read_json

# Passed on to every actor: without a hub, transformers must not try the network; torch and vLLM stay terse.
QUIET = {"TOKENIZERS_PARALLELISM": "false", "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}
SCALE = "scale.json"  # in the run directory: how many actors `hero scale` wants of which fleet
WATCH_S = 2.0  # how often the driver looks at the heartbeats of those it waits for


@dataclass(frozen=True)
class Member:
    """One actor of a fleet, and how to start another in its place."""

    name: str
    arguments: dict[str, Any]
    incarnation: int
    actor: Any
    pulse: Pulse


class Fleet:
    """Actors of one kind. `limits` say when one that does not answer is taken for hung."""

    def __init__(
        self, kind: str, target: str, arguments: Sequence[dict[str, Any]], options: dict[str, Any], logs: Path,
        limits: ClusterConfig | None = None,
    ) -> None:  # fmt: skip
        self.kind, self.target, self.logs = kind, target, logs
        self.limits = limits or ClusterConfig()
        self._host = ray.remote(Host).options(**options)
        self._hung: set[int] = set()
        self._watched = 0.0
        self._members = [self._member(f"{kind}-{i}", given) for i, given in enumerate(arguments)]
        self._joining: list[tuple[Member, ray.ObjectRef]] = []

    def _member(self, name: str, arguments: dict[str, Any], incarnation: int = 0) -> Member:
        pulse = f"zero2hero-{ray.get_runtime_context().get_job_id()}-{id(self)}-{name}-{incarnation}-{time.time_ns()}"
        actor = self._host.remote(name, self.target, str(self.logs / f"{name}.log"), arguments, pulse)
        return Member(name, arguments, incarnation, actor, Pulse(pulse))

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

    def submit_split(self, index: int, count: int, method: str, *args: Any, **kwargs: Any) -> list[ray.ObjectRef]:
        """A call that returns `count` values, each with a reference of its own."""
        return self._members[index % len(self)].actor.call.options(num_returns=count).remote(method, *args, **kwargs)

    def all(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        """The same call on every actor at once; their results in order."""
        return self.get([self.submit(i, method, *args, **kwargs) for i in range(len(self))], method)

    def get(self, refs: Sequence[ray.ObjectRef] | dict[ray.ObjectRef, int], doing: str) -> list[Any]:
        """Results of calls: of one to each actor in order, or of any with the index of the actor of each. The first failure
        ends the wait: where one rank of a collective has died, the others may wait for ever. Raises UserError if that is
        what the actor raised, else FleetError, also for an actor that hangs."""
        whose = refs if isinstance(refs, dict) else {ref: i for i, ref in enumerate(refs)}
        pending = list(whose)
        while pending:
            ready, pending = ray.wait(pending, timeout=WATCH_S)
            if ready:
                self.result(ready[0], whose[ready[0]], doing)
            else:
                self.watch({whose[ref] for ref in pending}, doing)
        return ray.get(list(whose))

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
        for i in sorted({index % len(self) for index in indexes}):
            pulse, limits = self._members[i].pulse, self.limits
            silence = pulse.silence()
            if silence > limits.silence_s:
                what = f"no heartbeat for {silence:.0f} s, over cluster.silence_s={limits.silence_s:g}"
            elif pulse.at_work > limits.stall_s:
                what = f"at work for {pulse.at_work:.0f} s, over cluster.stall_s={limits.stall_s:g}; its stack is there"
            else:
                continue
            self._hung.add(i)
            raise FleetError(f"{self.names[i]} hangs in {doing} ({what}); see {self.logs / self.names[i]}.log")

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
        silent = {asked[ref] for ref in pending if self._members[asked[ref]].pulse.silence() > self.limits.silence_s}
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
                told.append(f"{member.name} failed to start ({_first_line(fault)}); see {self.logs / member.name}.log")
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


def utilization(learners: Fleet, tokens_per_second: float) -> dict[str, float]:
    """Model FLOP utilization of the current task, where the device's peak is known."""
    flops, peak = learners.get([learners.submit(0, "flops_per_token")], "flops_per_token")[0]
    return {"perf/mfu": tokens_per_second * flops / (peak * len(learners))} if peak else {}


def _first_line(fault: BaseException | None) -> str:
    return next((line.strip() for line in str(fault).splitlines() if line.strip()), "no message")


class Fleets:
    """The fleets of one run."""

    def __init__(self, config: RunConfig, root: Path) -> None:
        self.config, self.logs, self.wishes = config, root / "logs", root / SCALE
        self.transport = make_transport(config.learners.transport, root)
        self._fleets: dict[str, Fleet] = {}
        self._makers: dict[str, Callable[[int], dict[str, Any]]] = {}  # what the i-th actor of a fleet is started with
        self._followed: dict[str, int] = {}  # the last wish for each
        self._scorers_of: tuple[str, str | None] | None = None
        self._freed = float("-inf")  # when actors were last stopped, whose room Ray takes a moment to give back

    def start(self) -> None:
        """Joins the configured Ray cluster, or starts one of this run's own."""
        self.wishes.unlink(missing_ok=True)
        start_ray(self.config.cluster.address, self.config.cluster.cpus, self.config.cluster.object_store_gib)

    def learners(self) -> Fleet:
        """DeepSpeed ranks, joined into one process group."""
        if "learner" not in self._fleets:
            settings = self.config.learners
            arguments = [{"rank": rank, "config": settings, "model": self.config.model} for rank in range(settings.ranks)]
            fleet = self._start("learner", "learners.actor:LearnerActor", arguments, settings.threads, settings.gpus)
            address, port = fleet.get([fleet.submit(0, "address")], "address")[0]
            fleet.all("join", address, port)
        return self._fleets["learner"]

    def rollouts(self, model: Path) -> Fleet:
        """vLLM engines. `model` gives the architecture; a fleet that is up already keeps its weights (see `Policy`)."""
        if "rollout" not in self._fleets:
            settings = self.config.rollout.model_copy(
                update={
                    "dtype": self.config.ppo.dtype,
                    "max_model_len": self.config.rollout.max_model_len or self.config.model.context,
                }
            )
            self._makers["rollout"] = lambda i: {
                "name": f"rollout-{i}", "model_path": str(model), "config": settings, "seed": self.config.seed * 1000 + i
            }  # fmt: skip
            arguments = [self._makers["rollout"](i) for i in range(settings.actors)]
            env = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
            self._start("rollout", "actors.rollout:RolloutActor", arguments, settings.threads, settings.gpus, env)
        return self._fleets["rollout"]

    def scorers(self, reference: Path, reward: Path | None) -> Fleet:
        """Reward model and reference policy; started anew when asked for other models."""
        wanted = (str(reference.resolve()), str(reward.resolve()) if reward else None)
        if self._scorers_of != wanted:
            if "scoring" in self._fleets:
                self._fleets.pop("scoring").stop()
                self._freed = time.monotonic()
            settings = self.config.scoring
            models = {"reference": wanted[0], "reward": wanted[1], "model": self.config.model}
            argument = {**models, "config": settings, "rewards": self.config.rewards}
            self._makers["scoring"] = lambda i: argument
            arguments = [argument] * settings.actors
            self._start("scoring", "actors.scoring:ScoringActor", arguments, settings.threads, settings.gpus)
            self._scorers_of = wanted
        return self._fleets["scoring"]

    def _start(
        self, kind: str, target: str, arguments: list[dict[str, Any]], threads: int, gpus: float,
        env: dict[str, str] | None = None,
    ) -> Fleet:  # fmt: skip
        cpus = threads if kind == "learner" else 0
        variables = {**QUIET, "OMP_NUM_THREADS": str(threads), **(env or {})}
        options = {"num_cpus": cpus, "num_gpus": gpus, "runtime_env": {"env_vars": variables}}
        self._check_room(kind, cpus * len(arguments), gpus * len(arguments))
        self._fleets[kind] = Fleet(kind, target, arguments, options, self.logs, self.config.cluster)
        return self._fleets[kind]

    def heal(self) -> list[str]:
        """Replaces the actors that are dead or hang, and returns their names. Learners lose their process group with the
        first of them, so all of them are stopped, and start again when a stage asks for them."""
        names = []
        for kind, fleet in list(self._fleets.items()):
            lost = fleet.lost()
            names += [fleet.names[i] for i in lost]
            if lost and kind == "learner":
                self._fleets.pop(kind).stop()
                self._freed = time.monotonic()
            elif lost:
                for i in lost:
                    fleet.replace(i)
        return names

    def wanted(self, kind: str) -> int:
        """Actors that a fleet is to have: what `hero scale` last asked for, else what it has."""
        return (read_json(self.wishes) or {}).get(kind, self._fleets[kind].expected)

    def resize(self) -> list[str]:
        """Starts or lets go of actors as wished, takes in those that have started, and says what was done. New engines hold
        old weights: call this before a weight update."""
        told = []
        for kind in self._makers:
            fleet, count = self._fleets[kind], self.wanted(kind)
            if count == self._followed.get(kind, fleet.expected):
                count = fleet.expected  # a wish is followed once, or one that cannot start would be tried for ever
            else:
                told.append(f"{kind} fleet: from {fleet.expected} to {count}")
                self._followed[kind] = count
            if count < fleet.expected:
                fleet.shrink(min(count, len(fleet)))
            while fleet.expected < count:
                fleet.grow(self._makers[kind](fleet.expected))
            told += fleet.settle()
        return told

    def _check_room(self, kind: str, cpus: float, gpus: float) -> None:
        """Refuses at once what Ray would wait for in silence."""
        free = ray.available_resources()
        while (cpus > free.get("CPU", 0) or gpus > free.get("GPU", 0)) and time.monotonic() < self._freed + 20:
            time.sleep(0.5)
            free = ray.available_resources()
        for what, need in (("CPU", cpus), ("GPU", gpus)):
            if need > free.get(what, 0):
                key = "learners" if kind == "learner" else kind
                raise UserError(
                    f"the {kind} fleet needs {need:g} {what} and the Ray cluster has {free.get(what, 0):g} free of "
                    f"{ray.cluster_resources().get(what, 0):g}; lower the numbers in section {key} or add nodes"
                )

    def close(self) -> None:
        for fleet in self._fleets.values():
            fleet.stop()
        self._fleets.clear()
        self.transport.close()
        ray.shutdown()


def generate(
    rollouts: Fleet, prompts: Sequence[Sequence[int]], prompt_ids: Sequence[int], decoding: Decoding, end_token: int,
    n: int = 1, seeds: Sequence[int] | None = None,
) -> list[ray.ObjectRef]:  # fmt: skip
    """Starts sampling n responses to each prompt over the whole fleet; one Samples reference per engine, in order."""
    share = -(-len(prompts) // len(rollouts))
    refs = []
    for i, start in enumerate(range(0, len(prompts), share)):
        part = slice(start, start + share)
        part_seeds = list(seeds[start * n : (start + share) * n]) if seeds is not None else None
        asked = ([list(p) for p in prompts[part]], list(prompt_ids[part]), decoding, end_token)
        refs.append(rollouts.submit(i, "generate", *asked, n=n, seeds=part_seeds))
    return refs
