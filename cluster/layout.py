"""Which actor runs on which GPU: arithmetic on the config, without Ray.

A *bundle* is what Ray reserves on one host at once: GPUs and cores for the actors that sit on it. A *group*
is a Ray placement group: bundles that are reserved together or not at all.

    group        strategy     bundles
    learners     PACK         one GPU for each rank; on as few hosts as possible
    rollout-I    STRICT_PACK  engine I on one host (executor mp): one bundle of all its GPUs
    rollout-I    PACK         engine I over hosts (executor ray): one GPU for each worker
    scoring-I    STRICT_PACK  one scoring actor, with the GPUs of all devices that its models are cut over

Fleets that share the learners' GPUs have no groups of their own: worker W of engine I sits beside learner
rank I x workers + W, scoring actor I beside rank I. Each takes a fraction of that bundle's GPU, so that
Ray shows all of them the same one; `cluster.turns` has them use it one after the other.

On CPU learners reserve their cores and the other fleets run beside them: the phases of an iteration take
turns, and were the cores reserved for each fleet, three times as many would be needed as are ever at work.

`cluster.fleets.reservation` reserves the groups, `cluster.layout_fit` says whether they fit some hosts,
`cluster.plan` draws them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cluster.config import RunConfig
from cluster.layout_config import NAMED, FleetLayout, LayoutConfig, LearnerLayout

SECTIONS = {"learner": "learners", "rollout": "rollout", "scoring": "scoring"}
"""Config section of each kind of fleet."""

SHARES = {"learner": 0.4, "rollout": 0.4, "scoring": 0.2}
"""Fraction of a shared GPU that each kind takes of Ray. Together 1; what they are says nothing about
memory."""

LEARNERS = "learners"
"""Name of the learners' group."""


@dataclass(frozen=True)
class Seat:
    """An actor, or one worker of an engine, on a bundle."""

    kind: str
    index: int
    """Of the actor in its fleet."""
    worker: int = 0
    """Of the engine."""
    gpus: float = 0.0
    """Of the bundle."""
    cpus: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.index}"


@dataclass(frozen=True)
class Bundle:
    seats: tuple[Seat, ...]
    gpus: float = 0.0
    cpus: float = 0.0
    host: str | None = None
    """The host that it is to be on; None: any."""
    others: tuple[str, ...] = ()
    """Hosts for it while that one is not in the cluster."""

    @property
    def resources(self) -> dict[str, float]:
        """What it asks Ray for, without the host."""
        needed = {"GPU": self.gpus, "CPU": self.cpus}
        return {name: amount for name, amount in needed.items() if amount}


@dataclass(frozen=True)
class Group:
    name: str
    strategy: Literal["PACK", "STRICT_PACK"]
    bundles: tuple[Bundle, ...]


@dataclass(frozen=True)
class ActorPlace:
    """Where one actor runs, in terms of a group."""

    group: str
    bundles: tuple[int, ...]
    """One for an actor; for an engine of the ray executor that of each worker, and the actor itself is
    without a GPU on the first."""
    gpus: float
    """Of each bundle."""
    cpus: float


def layout_of(config: RunConfig) -> LayoutConfig:
    layout = config.cluster.layout
    return NAMED[layout] if isinstance(layout, str) else layout


def fleet_layout(config: RunConfig, kind: str) -> FleetLayout | LearnerLayout:
    section: FleetLayout | LearnerLayout = getattr(layout_of(config), SECTIONS[kind])
    return section


def shares_learners(config: RunConfig, kind: str) -> bool:
    """Whether the fleet is on the learners' GPUs."""
    section = fleet_layout(config, kind)
    return isinstance(section, FleetLayout) and section.share == "learners"


def turn_takers(config: RunConfig) -> frozenset[str]:
    """Kinds of fleets that take turns on the same GPUs; empty where every fleet has its own."""
    sharing = [kind for kind in ("rollout", "scoring") if shares_learners(config, kind)]
    return frozenset([*sharing, "learner"]) if sharing else frozenset()


def has_models(config: RunConfig, kind: str) -> bool:
    """Whether the fleet's actors hold a model. Scoring actors that only call functions need no GPU."""
    return kind != "scoring" or config.uses_reference or bool(config.rewards.model_indices)


def gpus_each(config: RunConfig, kind: str) -> float:
    """GPUs of one actor, or of each worker of an engine, where they are not shared."""
    given: float | None = getattr(config, SECTIONS[kind]).gpus
    if given is not None:
        return given
    return float(config.cluster.device == "cuda" and has_models(config, kind))


def device_of(config: RunConfig, kind: str) -> Literal["cpu", "cuda"]:
    """The device that actors of this kind compute on."""
    return "cuda" if config.cluster.device == "cuda" and gpus_each(config, kind) else "cpu"


def executor(config: RunConfig) -> Literal["uni", "mp", "ray"]:
    """vLLM's executor of an engine: in its own process, in further processes of its host, or in Ray actors.

    Workers on shared GPUs are Ray actors, since each takes a fraction of another bundle."""
    rollout = config.rollout
    if rollout.workers == 1:
        return "uni"
    if config.cluster.device == "cpu":
        return "mp"
    if rollout.executor != "auto":
        return rollout.executor
    return "ray" if rollout.pipeline_parallel > 1 or shares_learners(config, "rollout") else "mp"


def size(config: RunConfig, kind: str) -> int:
    """Actors of a fleet when the run starts."""
    return config.learners.ranks if kind == "learner" else getattr(config, SECTIONS[kind]).actors


def groups(config: RunConfig, kinds: Sequence[str]) -> list[Group]:
    """The groups that a run with these kinds of fleets reserves. Bundles without resources are left out:
    Ray puts their actors anywhere."""
    made = []
    if "learner" in kinds or any(shares_learners(config, kind) for kind in kinds):
        made.append(_learners(config))
    for kind in ("rollout", "scoring"):
        if kind in kinds and not shares_learners(config, kind):
            for index in range(size(config, kind)):
                group = own_group(config, kind, index)
                if group:
                    made.append(group)
    return made


def own_group(config: RunConfig, kind: str, index: int) -> Group | None:
    """The group of one engine or scoring actor; None where it reserves nothing."""
    gpus, (host, others) = gpus_each(config, kind), _hosts(config, kind, index, size(config, kind))
    if not gpus and not host:
        return None
    name, workers = f"{kind}-{index}", 1
    if config.cluster.device == "cuda":
        workers = config.rollout.workers if kind == "rollout" else config.scoring.tensor_parallel
    if kind == "rollout" and workers > 1 and executor(config) == "ray":
        bundles = []
        for worker in range(workers):
            bundles.append(Bundle((Seat(kind, index, worker, gpus),), gpus, 0.0, host, others))
        return Group(name, "PACK", tuple(bundles))
    seats = tuple(Seat(kind, index, worker, gpus) for worker in range(workers))
    return Group(name, "STRICT_PACK", (Bundle(seats, gpus * workers, 0.0, host, others),))


def place(config: RunConfig, kind: str, index: int) -> ActorPlace | None:
    """The place of an actor; None where it reserves nothing."""
    group = own_group(config, kind, index)
    if kind == "learner" or shares_learners(config, kind):
        group = _learners(config)
    if group is None:
        return None
    numbers, seats = [], []
    for number, bundle in enumerate(group.bundles):
        for seat in bundle.seats:
            if (seat.kind, seat.index) == (kind, index):
                numbers.append(number)
                seats.append(seat)
    if not seats:
        return None
    gpus = seats[0].gpus
    if len(set(numbers)) == 1:
        gpus *= len(seats)  # workers that are processes of the actor have all its GPUs
        numbers = numbers[:1]
    return ActorPlace(group.name, tuple(numbers), gpus, seats[0].cpus)


def _learners(config: RunConfig) -> Group:
    """One bundle for each rank, with those that share its GPU."""
    ranks, cuda = config.learners.ranks, config.cluster.device == "cuda"
    takers = turn_takers(config)
    cpus, gpus = float(config.learners.threads), gpus_each(config, "learner")
    share = {kind: SHARES[kind] if cuda else 0.0 for kind in takers}
    if "scoring" in takers and not has_models(config, "scoring"):
        share["scoring"] = 0.0
    if "scoring" in takers:
        # Several scoring actors on one GPU divide their share; Ray counts ten-thousandths.
        beside = math.ceil(config.scoring.actors / ranks)
        share["scoring"] = math.floor(share["scoring"] / beside * 1e4) / 1e4
    # On CPU the workers of an engine are processes of its actor.
    workers = config.rollout.workers if cuda else 1
    bundles = []
    for rank in range(ranks):
        seats = [Seat("learner", rank, 0, share.get("learner", gpus), cpus)]
        if "rollout" in takers:
            index, worker = divmod(rank, workers)
            if index < config.rollout.actors:
                seats.append(Seat("rollout", index, worker, share["rollout"]))
        if "scoring" in takers:
            for index in range(rank, config.scoring.actors, ranks):
                seats.append(Seat("scoring", index, 0, share["scoring"]))
        bundles.append(Bundle(tuple(seats), gpus, cpus, *_hosts(config, "learner", rank, ranks)))
    return Group(LEARNERS, "PACK", tuple(bundles))


def _hosts(config: RunConfig, kind: str, index: int, count: int) -> tuple[str | None, tuple[str, ...]]:
    """The host of a rank or an actor, and the others that it may be on: contiguous shares of the fleet,
    further actors in turn."""
    hosts = fleet_layout(config, kind).hosts
    if not hosts:
        return None, ()
    chosen = index * len(hosts) // count if index < count else index % len(hosts)
    return hosts[chosen], (*hosts[chosen + 1 :], *hosts[:chosen])
