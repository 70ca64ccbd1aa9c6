"""Prompts on their way to the learners: admitted, answered, scored, gathered into batches.

    admit ─► rollout actors (run_groups) ─samples─► scoring actors ─► forming batches ─► take

One loop, two settings. With staleness 0 a batch is admitted once the weights that it is for are loaded: the synchronous
algorithm. With staleness S rollouts run ahead: at any time at most S + 1 batches are on their way before the next one is
taken, and S while the learners work on it (Fu et al. 2025, AReaL, eq. 3). What comes in under weights too old for the
batch that it would be part of is dropped and asked again, so no sample is ever older than S versions when it is learned
from.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heapreplace
from typing import Any

import ray

from actors import prompt_group
from actors.config import Decoding
from cluster.fleets.fleet import WATCH_S, Fleet, wait_any
from cluster.rl.reward_aggregator import Part, RewardAggregator

PUMP_S = 0.25  # how long an engine works before it hands over what is finished, where rollouts run ahead


@dataclass(frozen=True)
class PromptGroup:
    """A prompt to be answered, once for each seed."""

    prompt_id: int
    row: dict[str, Any]
    tokens: list[int]
    seeds: list[int]


@dataclass
class PendingBatch:
    """A batch that is being gathered."""

    places: list[int] = field(default_factory=list)
    parts: list[tuple[int, Part]] = field(default_factory=list)
    came: list[float] = field(default_factory=list)
    """When each of the places was handed over."""
    reserved: int = 0
    """Groups that engines were asked for and have not handed over."""


class RolloutScheduler:
    """`asked(place)` is what the `place`-th group of the run asks; the run ends with version `last`. `state` is what a
    checkpoint keeps of the flow."""

    def __init__(
        self,
        rollouts: Fleet,
        rewards: RewardAggregator,
        asked: Callable[[int], PromptGroup],
        size: int,
        staleness: int,
        decoding: Decoding,
        end_token: int,
        last: int,
        state: dict[str, Any] | None,
    ) -> None:
        self.rollouts, self.rewards, self.asked = rollouts, rewards, asked
        self.size, self.staleness, self.decoding, self.end_token = size, staleness, decoding, end_token
        self._last = last
        self._next: int = state["next"] if state else 0
        self._again: list[int] = list(state["again"]) if state else []
        self._flying: dict[int, dict[int, int]] = defaultdict(
            dict
        )  # by engine: place, tokens that it may take
        self._new: dict[int, list[int]] = defaultdict(
            list
        )  # those of them that the engine has yet to hear of
        self._pumping: dict[ray.ObjectRef, tuple[int, ray.ObjectRef, PendingBatch, int]] = {}
        self._forming: list[PendingBatch] = []
        self._known: dict[int, PromptGroup] = {}
        self.due = 0
        """Version of the weights that the next batch is for."""
        self.version = 0
        """Version of the weights that the engines have; one less than `due` while the learners are at work."""
        self.dropped = 0
        rollouts.all("cancel_groups")

    @property
    def state(self) -> dict[str, Any]:
        """What has been asked and not been learned from is asked again by whoever goes on from here."""
        return {"next": self._next, "again": sorted([*self._again, *self._known])}

    def take(self, step: int) -> tuple[list[Any], list[int], dict[str, float], float]:
        """The next batch, scored: (batch as learners take it, prompts, metrics, seconds that were waited for engines)."""
        started = time.perf_counter()
        while not (self._forming and len(self._forming[0].places) == self.size):
            self._turn([])
        waited = time.perf_counter() - started
        batch = self._forming.pop(0)
        queued = time.monotonic() - sum(batch.came) / self.size
        for place in batch.places:
            del self._known[place]
        parts = [part for _, part in sorted(batch.parts, key=lambda entry: entry[0])]
        scored, metrics = self.rewards.finish(parts, step)
        share = self.dropped / max(1, self._next + self.dropped)
        metrics |= {
            "flow/queue_seconds": queued,
            "flow/dropped": float(self.dropped),
            "flow/dropped_share": share,
        }
        return scored, [self.asked(place).prompt_id for place in sorted(batch.places)], metrics, waited

    def until(self, fleet: Fleet, refs: Sequence[ray.ObjectRef], doing: str) -> list[Any]:
        """Results of one call to each actor of another fleet; rollouts and scoring go on meanwhile."""
        whose = {ref: i for i, ref in enumerate(refs)}
        pending = list(refs)
        found: dict[ray.ObjectRef, Any] = {}
        while pending:
            for ref in self._turn(pending):
                found[ref] = fleet.result(ref, whose[ref], doing)
                pending.remove(ref)
            fleet.watch([whose[ref] for ref in pending], doing)
        return [found[ref] for ref in refs]

    def release(self, count: int) -> None:
        """Takes back what all engines but the first `count` are at; it is asked again."""
        for index in [i for i in self._flying if i >= count]:
            places = list(self._flying.pop(index))
            self._new.pop(index, None)
            self._again += places
            for place in places:
                del self._known[place]
        for ref, (index, _, batch, most) in list(self._pumping.items()):
            if index >= count:
                del self._pumping[ref]
                batch.reserved -= most

    def _turn(self, others: list[ray.ObjectRef]) -> list[ray.ObjectRef]:
        """Keeps everybody busy and waits for something to happen; returns those of `others` that are done."""
        self._admit()
        self._pump()
        ready = wait_any([*self._pumping, *others], WATCH_S)
        for ref in ready:
            if ref in self._pumping:
                self._gather(ref)
        self.rollouts.watch([index for index, *_ in self._pumping.values()], "run_groups")
        return [ref for ref in ready if ref in others]

    @property
    def _ahead(self) -> int:
        """Batches that may be on their way now."""
        return min(self.staleness + 1 - (self.due - self.version), self._last - self.due)

    def _admit(self) -> None:
        """Finds new groups for the engines with the least to do."""
        wanted = self._ahead * self.size - len(self._known)
        least = [(sum(self._flying[i].values()), i) for i in range(len(self.rollouts))] if wanted > 0 else []
        heapify(least)
        for _ in range(wanted):
            if self._again:
                place = self._again.pop(0)
            else:
                place, self._next = self._next, self._next + 1
            ask = self._known[place] = self.asked(place)
            load, index = least[0]
            tokens = self._flying[index][place] = (len(ask.tokens) + self.decoding.max_tokens) * len(
                ask.seeds
            )
            self._new[index].append(place)
            heapreplace(least, (load + tokens, index))

    def _pump(self) -> None:
        """Asks every engine that has something to do for as many groups as a forming batch still lacks."""
        busy = {index for index, *_ in self._pumping.values()}
        for index in range(len(self.rollouts)):
            flying = self._flying[index]
            number, batch = self._open()
            if index in busy or not flying or batch is None:
                continue
            most = min(len(flying), self.size - len(batch.places) - batch.reserved)
            batch.reserved += most
            asks = [(place, self._known[place]) for place in self._new[index]]
            new = [
                prompt_group.PromptGroup(place, ask.prompt_id, ask.tokens, ask.seeds) for place, ask in asks
            ]
            self._new[index] = []
            limits = (most, number - self.staleness, PUMP_S if self.staleness else None)
            told, samples = self.rollouts.submit_split(
                index, 2, "run_groups", new, self.decoding, self.end_token, *limits
            )
            self._pumping[told] = (index, samples, batch, most)

    def _open(self) -> tuple[int, PendingBatch | None]:
        """The first batch that lacks groups nobody was asked for, and the version that will learn from it."""
        for i in range(self._ahead):
            if i == len(self._forming):
                self._forming.append(PendingBatch())
            batch = self._forming[i]
            if len(batch.places) + batch.reserved < self.size:
                return self.due + i, batch
        return 0, None

    def _gather(self, ref: ray.ObjectRef) -> None:
        """Sends what an engine has finished on to be scored."""
        index, samples, batch, most = self._pumping.pop(ref)
        status: prompt_group.GroupStatus = self.rollouts.result(ref, index, "run_groups")
        batch.reserved -= most
        for place in (*status.finished, *status.dropped):
            del self._flying[index][place]
        for place in status.dropped:
            del self._known[place]
        self._again += status.dropped
        self.dropped += len(status.dropped)
        if status.finished:
            rows = {self._known[place].prompt_id: self._known[place].row for place in status.finished}
            batch.places += status.finished
            batch.came += [time.monotonic()] * len(status.finished)
            batch.parts.append((index, self.rewards.submit(index, samples, rows, self.decoding.temperature)))
