"""The state of each group of a PPO run: the bookkeeping of `RolloutScheduler`, without Ray.

              assign                finish                 hand_over
    QUEUED ────────────► IN_FLIGHT ─────────► FINISHED ─────────────► BATCHED
       ▲                     │
       └────── requeue ──────┘   stale, or its engine leaves the fleet

Groups that are IN_FLIGHT or FINISHED are outstanding. The table holds no more than these and the
requeued ones; what was never assigned is QUEUED, and all others are BATCHED.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from heapq import heapify, heapreplace
from typing import Any

from actors.prompt_group import PromptGroup
from cluster.rl.prompt_stream import PromptStream


class GroupState(Enum):
    QUEUED = "to be given to an engine"
    IN_FLIGHT = "an engine works on it, or will with its next call"
    FINISHED = "its samples are there and are being scored"
    BATCHED = "the learners have it"


@dataclass
class OutstandingGroup:
    group: PromptGroup
    state: GroupState


@dataclass
class EngineQueue:
    """The groups in flight at one engine."""

    costs: dict[int, int] = field(default_factory=dict)
    """By group index: the most tokens that the engine may have to process for it."""
    unsent: list[PromptGroup] = field(default_factory=list)
    """Those of them that the engine has not received yet."""

    @property
    def tokens(self) -> int:
        return sum(self.costs.values())


class GroupTable:
    """Groups of a prompt stream, which engine has which, and what is next. `state` continues from
    a checkpoint."""

    def __init__(self, prompts: PromptStream, max_tokens: int, state: dict[str, Any] | None = None) -> None:
        """`max_tokens` is the longest response."""
        self.prompts = prompts
        self.max_tokens = max_tokens
        self._next_index = 0
        self._requeued: list[int] = []
        if state:
            self._next_index = state["next_index"]
            self._requeued = list(state["requeued"])
        self._outstanding: dict[int, OutstandingGroup] = {}
        self._queues: dict[int, EngineQueue] = {}

    @property
    def state(self) -> dict[str, Any]:
        """For a checkpoint. Outstanding groups are lost with the process, so they count as
        requeued."""
        requeued = sorted([*self._requeued, *self._outstanding])
        return {"next_index": self._next_index, "requeued": requeued}

    @property
    def num_outstanding(self) -> int:
        return len(self._outstanding)

    @property
    def num_assigned(self) -> int:
        """Groups that were ever assigned, requeued ones counted once."""
        return self._next_index

    def state_of(self, index: int) -> GroupState:
        if index in self._outstanding:
            return self._outstanding[index].state
        if index >= self._next_index or index in self._requeued:
            return GroupState.QUEUED
        return GroupState.BATCHED

    def num_in_flight(self, engine: int) -> int:
        return len(self._queue(engine).costs)

    def in_flight(self, engine: int) -> list[int]:
        """Indices of the groups that this engine has."""
        return list(self._queue(engine).costs)

    def cost(self, group: PromptGroup) -> int:
        """The most tokens that a group can take. The length of its responses is not known before
        they are sampled."""
        return (len(group.tokens) + self.max_tokens) * len(group.seeds)

    def assign(self, count: int, engines: int) -> None:
        """Gives `count` queued groups to engines 0 to `engines` - 1: each to the one with the
        fewest tokens in flight, the first of them if several have as few. Requeued groups come
        first."""
        if count <= 0:
            return
        # A heap, since there may be hundreds of engines and thousands of groups.
        loads = [(self._queue(engine).tokens, engine) for engine in range(engines)]
        heapify(loads)
        for _ in range(count):
            group = self.prompts[self._next()]
            cost = self.cost(group)
            tokens, engine = loads[0]
            heapreplace(loads, (tokens + cost, engine))
            # In flight from now on, though a busy engine receives it later: its load counts.
            self._outstanding[group.index] = OutstandingGroup(group, GroupState.IN_FLIGHT)
            queue = self._queue(engine)
            queue.costs[group.index] = cost
            queue.unsent.append(group)

    def take_unsent(self, engine: int) -> list[PromptGroup]:
        """The groups that the next call to this engine has to bring along."""
        queue = self._queue(engine)
        unsent, queue.unsent = queue.unsent, []
        return unsent

    def finish(self, engine: int, indices: Iterable[int]) -> None:
        for index in indices:
            del self._queue(engine).costs[index]
            self._outstanding[index].state = GroupState.FINISHED

    def requeue(self, engine: int, indices: Iterable[int]) -> None:
        """For groups that the engine has dropped; they will be sampled again from the start."""
        for index in indices:
            del self._queue(engine).costs[index]
            del self._outstanding[index]
            self._requeued.append(index)

    def requeue_engines(self, first: int) -> None:
        """Requeues everything in flight at the engines from number `first` on."""
        for engine in sorted(self._queues):
            if engine >= first:
                self.requeue(engine, self.in_flight(engine))
                del self._queues[engine]

    def hand_over(self, indices: Sequence[int]) -> list[PromptGroup]:
        """The finished groups of a batch, by index in ascending order; the table forgets them."""
        groups = []
        for index in sorted(indices):
            outstanding = self._outstanding.pop(index)
            if outstanding.state is not GroupState.FINISHED:
                state = outstanding.state.name
                raise ValueError(f"group {index} is in a batch, but its state is {state}")
            groups.append(outstanding.group)
        return groups

    def rows_of(self, indices: Iterable[int]) -> dict[int, dict[str, Any]]:
        """Rows of the prompt file for outstanding groups, by prompt id: what functions of the
        user score with."""
        rows = {}
        for index in indices:
            prompt_id = self._outstanding[index].group.prompt_id
            rows[prompt_id] = self.prompts.rows[prompt_id]
        return rows

    def _queue(self, engine: int) -> EngineQueue:
        return self._queues.setdefault(engine, EngineQueue())

    def _next(self) -> int:
        # Requeued groups were meant for an earlier batch than any new one.
        if self._requeued:
            return self._requeued.pop(0)
        self._next_index += 1
        return self._next_index - 1
