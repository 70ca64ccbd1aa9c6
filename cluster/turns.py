"""Fleets that share GPUs use them one after the other: who holds what in each phase, and how it moves.

    phase      learner           rollout           scoring
    learner    weights, states   -                 -           training, checkpoints, exports
    sync       weights           weights           -           weights go from the learners to the engines
    rollout    -                 weights, cache    -           sampling, log-probabilities of the engines
    scoring    -                 -                 weights     rewards and the reference policy

A part that is not in its column is on the host (engines: at sleep level 2 nowhere). A phase begins when
the first call of its kind is made (`Fleet.before_call`): whatever is not of this phase leaves first, then
the rest comes. Calls to one actor run in their order, so a fleet leaves after the calls that it was given
before, and `take` returns when it has left. That nothing is missing shows in the actors: one whose weights
are away refuses to work.

Engines sleep at level 1, with their weights in host memory, as long as somebody may ask them again before
the next sync, and at `rollout.sleep_level` where the next thing that they get are new weights
(`weights_follow`).

Fleets with GPUs of their own take no turns: nothing here is called for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

Parts = frozenset[str]

NOTHING: Parts = frozenset()
ALL: dict[str, Parts] = {
    "learner": frozenset({"weights", "states"}),
    "rollout": frozenset({"weights", "kv_cache"}),
    "scoring": frozenset({"weights"}),
}
"""What a fleet has on the GPU when it works."""

PHASES: dict[str, dict[str, Parts]] = {
    "learner": {"learner": ALL["learner"]},
    "sync": {"learner": frozenset({"weights"}), "rollout": frozenset({"weights"})},
    "rollout": {"rollout": ALL["rollout"]},
    "scoring": {"scoring": ALL["scoring"]},
}

ANY_TIME = {
    "learner": {
        "address",
        "join",
        "offload",
        "reload",
        "memory",
        "open_links",
        "accept_links",
        "free_buffers",
        "count_groups_with_signal",
        "flops_per_token",
    },
    "rollout": {"sleep", "wake", "ready", "join_link", "cancel_groups"},
    "scoring": {"offload", "reload", "select"},
}
"""Calls that need nothing of the GPU."""

SYNC = {"send_bucket", "broadcast_weights"}
"""Calls to the learners that the engines' weights must be awake for."""
INTO_ENGINES = {"update_weights"}
"""Calls to the engines that belong to a sync, or come from a folder while the engines hold the turn."""


class Move(NamedTuple):
    """One call to a fleet."""

    kind: str
    method: str
    part: str = ""
    """Of the learners or of the engines; empty: all."""


def moves(on: Mapping[str, Parts], wanted: Mapping[str, Parts]) -> list[Move]:
    """What turns one state of the GPUs, {kind of fleet: its parts there}, into another: first all that
    leaves, then all that comes. Kinds that are not in `on` are not started."""
    leaving, coming = [], []
    for kind, parts in on.items():
        target = wanted.get(kind, NOTHING)
        gone, new = parts - target, target - parts
        if gone and kind == "rollout":
            # An engine can only sleep as a whole.
            leaving.append(Move(kind, "sleep"))
            new = target
        elif gone:
            leaving.append(_learner_move(kind, "offload", gone))
        if new and kind == "rollout":
            # Weights first: the cache takes what is left of the GPU.
            order = [part for part in ("weights", "kv_cache") if part in new]
            coming += [Move(kind, "wake", part) for part in order]
        elif new:
            coming.append(_learner_move(kind, "reload", new))
    return leaving + coming


def _learner_move(kind: str, method: str, parts: Parts) -> Move:
    if kind == "scoring":
        return Move(kind, method)
    return Move(kind, method, "all" if parts == ALL[kind] else next(iter(parts)))


class TurnTaker(Protocol):
    """The part of `cluster.fleets.fleet.Fleet` that turns need."""

    def call_some(self, indexes: Iterable[int] | None, method: str, *args: Any) -> list[Any]:
        """Calls these actors (None: all) and waits for them."""


class Turns:
    """The turns of the fleets in `fleets` whose kinds are in `takers`. Raises FleetError wherever a fleet
    fails."""

    def __init__(self, fleets: Mapping[str, TurnTaker], takers: frozenset[str], sleep_level: int = 1) -> None:
        self.fleets, self.takers, self.sleep_level = fleets, takers, sleep_level
        self.weights_follow = False
        """Whether engines get new weights before anybody asks them again."""
        self._on: dict[str, Parts] = {}
        self._phase: str | None = None

    def before(self, kind: str) -> Callable[[str], None] | None:
        """What a fleet of this kind is to call before each call to its actors; None: nothing."""
        if kind not in self.takers:
            return None

        def before_call(method: str) -> None:
            if method in ANY_TIME[kind]:
                return
            if method in INTO_ENGINES and self._phase == "sync":
                return
            self.take("sync" if method in SYNC and "rollout" in self._on else kind)

        return before_call

    def take(self, phase: str) -> None:
        """Begins a phase; nothing if it is the present one."""
        if not self.takers or self._phase == phase:
            return
        self._move_to(PHASES[phase])
        self._phase = phase

    def vacate(self, lost: Mapping[str, Iterable[int]] | None = None) -> None:
        """Has everybody leave, before a fleet starts or lost actors are replaced: vLLM measures the free
        memory when it starts. `lost`: indexes of the actors of each kind that cannot leave."""
        if not self.takers:
            return
        # After a failure in the middle of a move nobody knows who is where, and leaving twice is nothing.
        self._on = {kind: ALL[kind] for kind in self._on}
        self._move_to({}, lost or {})
        self._phase = None

    def started(self, kind: str) -> None:
        """A fleet has been started, and holds what it works with."""
        if kind in self.takers:
            self._on[kind] = ALL[kind]
            self._phase = kind

    def ended(self, kind: str) -> None:
        """A fleet has been stopped."""
        if self._on.pop(kind, None) is not None:
            self._phase = None

    def _move_to(self, wanted: Mapping[str, Parts], lost: Mapping[str, Iterable[int]] | None = None) -> None:
        self._phase = None  # of which a failure would leave nothing
        for move in moves(self._on, wanted):
            arguments: list[Any] = []
            if move.method == "sleep":
                arguments = [self.sleep_level if self.weights_follow else 1]
            elif move.method == "wake":
                arguments = [[move.part]]
            elif move.part:
                arguments = [move.part]
            indexes = None
            if lost and move.kind in lost:
                dead = set(lost[move.kind])
                size = len(self.fleets[move.kind])  # type: ignore[arg-type]
                indexes = [index for index in range(size) if index not in dead]
            self.fleets[move.kind].call_some(indexes, move.method, *arguments)
        self._on = {kind: wanted.get(kind, NOTHING) for kind in self._on}
