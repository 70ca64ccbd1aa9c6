"""Keeps rollout and scoring actors busy and gathers their results into batches for the learners.

    PromptStream ─► rollout actors ─samples─► scoring actors ─► open batches ─► next_batch
                     (run_groups)               (score)

The driver moves references only; samples stay in the object store. Each group has a state
(`cluster.rl.group_table`):

    QUEUED ─► IN_FLIGHT ─► FINISHED ─► BATCHED        dropped as stale: IN_FLIGHT ─► QUEUED

    call                waits for                       unblocked by
    next_batch          a full first open batch         an engine that returns finished groups
    wait_while_rolling  calls to the learners           the last of them; engines get work meanwhile
    poll                any call, at most WATCH_S       any call that ends

Capacity. With staleness S at most (S + 1 - learning) x batch groups are outstanding, that is
IN_FLIGHT or FINISHED, where `learning` is 1 while the learners work on a batch and 0 otherwise
(Fu et al. 2025, AReaL, eq. 3), and never more than the run still needs. With S = 0 nothing runs
while the learners work: the synchronous algorithm. A group that was begun under weights older
than `version - S`, where `version` is what its batch is for, is dropped and queued again, so no
token that is learned from is ever more than S versions old.

Example. S = 1, batch = 2, engines whose groups finish in any order:

    next_batch(0)       capacity 4   0 1 2 3 in flight under weights 0; 0 2 finish: the batch
    wait_while_rolling  capacity 2   1 3 are outstanding, so nothing is added; 3 finishes
    weights 1                        1 goes on, its next tokens are of version 1
    next_batch(1)       capacity 4   4 5 in flight under weights 1; 4 finishes, the batch is 3 4
    wait_while_rolling  capacity 2   1 5 are outstanding
    weights 2                        1 was begun under weights 0, older than 2 - 1: dropped, QUEUED
    next_batch(2)       capacity 4   1 6 7 in flight under weights 2, 5 still under 1; ...
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from actors.config import Decoding
from actors.prompt_group import GroupStatus
from cluster.fleets.actor_handle import wait_any
from cluster.fleets.fleet import WATCH_S, Fleet
from cluster.fleets.rollout_fleet import RolloutFleet
from cluster.rl.group_table import GroupTable
from cluster.rl.prompt_stream import PromptStream
from cluster.rl.reward_aggregator import PendingPart, RewardAggregator
from learners.rl.config import PPOConfig
from learners.rl.scored_parts import ScoredPart

RETURN_S = 0.25
"""How long an engine works before it returns what is finished, with staleness over 0."""


@dataclass
class OpenBatch:
    """A batch that groups are gathered for."""

    finished: list[int] = field(default_factory=list)
    """Group indices."""
    finished_at: list[float] = field(default_factory=list)
    """When each of them came in (time.monotonic)."""
    parts: list[PendingPart] = field(default_factory=list)
    reserved: int = 0
    """Groups that calls to engines may still return for this batch."""

    @property
    def num_taken(self) -> int:
        return len(self.finished) + self.reserved


@dataclass(frozen=True)
class PendingCall:
    """A call of `run_groups` that has not returned."""

    engine: int
    batch: OpenBatch
    max_groups: int
    """What it may return; reserved in the batch."""
    samples: ray.ObjectRef


@dataclass(frozen=True)
class RolloutBatch:
    """Scored samples of the groups of one batch."""

    parts: list[ScoredPart]
    prompt_ids: list[int]
    """Of its groups, in ascending order of their indices."""
    metrics: dict[str, float]
    """Of the rewards and of the scheduler."""
    generation_s: float
    """Seconds that the driver waited for engines."""


class RolloutScheduler:
    """Groups of a prompt stream, sampled, scored and batched. `state` continues from a
    checkpoint."""

    def __init__(
        self,
        rollouts: RolloutFleet,
        rewards: RewardAggregator,
        prompts: PromptStream,
        config: PPOConfig,
        decoding: Decoding,
        end_token: int,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.rollouts, self.rewards, self.config = rollouts, rewards, config
        self.decoding, self.end_token = decoding, end_token
        self.table = GroupTable(prompts, decoding.max_tokens, state)
        self.num_stale = 0
        """Groups that were dropped as stale in this run."""
        if state:
            self.num_stale = state["num_stale"]
        self._target_version = 0
        """Policy version that the first open batch is for."""
        self._engine_version = 0
        """Policy version of the engines; one less than the target while the learners work."""
        self._open_batches: list[OpenBatch] = []
        self._pending_calls: dict[ray.ObjectRef, PendingCall] = {}
        # Engines that outlived the driver before this one may still hold its groups.
        rollouts.cancel_groups()

    @property
    def state(self) -> dict[str, Any]:
        """For a checkpoint: whoever continues from it samples again whatever no learner has
        had."""
        return {**self.table.state, "num_stale": self.num_stale}

    def next_batch(self, version: int) -> RolloutBatch:
        """The next batch to learn from, scored. `version` is the policy version of learners and
        engines now. Also called again for the same version, for further samples
        (`cluster.rl.dynamic_sampling`)."""
        self._target_version = self._engine_version = version
        started = time.perf_counter()
        while not self._open_batches or len(self._open_batches[0].finished) < self.config.prompts:
            self.poll([])
        generation_s = time.perf_counter() - started
        batch = self._open_batches.pop(0)
        # From here on the learners work on this batch, and engines sample for the next version.
        self._target_version = version + 1
        queue_s = time.monotonic() - sum(batch.finished_at) / len(batch.finished_at)
        # By engine, and for each in the order of its calls: with staleness 0 this does not depend
        # on timing, and neither do the sums of the learners.
        pending = sorted(batch.parts, key=lambda part: part.index)
        parts, metrics = self.rewards.finish(pending, step=version + 1)
        groups = self.table.hand_over(batch.finished)
        num_sampled = self.table.num_assigned + self.num_stale
        metrics |= {
            "flow/queue_seconds": queue_s,
            "flow/dropped": float(self.num_stale),
            "flow/dropped_share": self.num_stale / max(1, num_sampled),
        }
        return RolloutBatch(parts, [group.prompt_id for group in groups], metrics, generation_s)

    def wait_while_rolling(self, fleet: Fleet, refs: Sequence[ray.ObjectRef], doing: str) -> list[Any]:
        """Results of one call to each actor of another fleet, in their order; rollouts and
        scoring go on meanwhile."""
        index_of = {ref: index for index, ref in enumerate(refs)}
        pending = list(refs)
        results: dict[ray.ObjectRef, Any] = {}
        while pending:
            for ref in self.poll(pending):
                results[ref] = fleet.result(ref, index_of[ref], doing)
                pending.remove(ref)
            # `poll` watches engines only.
            fleet.watch([index_of[ref] for ref in pending], doing)
        return [results[ref] for ref in refs]

    def requeue_engines(self, first: int) -> None:
        """Queues again what the engines from number `first` on work on, since they are about to
        leave the fleet."""
        # What these calls still return is ignored: other engines sample the groups from the start.
        self.table.requeue_engines(first)
        for ref, call in list(self._pending_calls.items()):
            if call.engine >= first:
                del self._pending_calls[ref]
                call.batch.reserved -= call.max_groups

    def poll(self, others: Sequence[ray.ObjectRef]) -> list[ray.ObjectRef]:
        """Gives every idle engine work and waits until a call ends, to an engine or one of
        `others`. Returns those of `others` that have ended."""
        self.table.assign(self._free_capacity(), len(self.rollouts))
        self._call_idle_engines()
        # Not for ever, so that a hung engine is noticed below.
        ended = wait_any([*self._pending_calls, *others], WATCH_S)
        for ref in ended:
            if ref in self._pending_calls:
                self._on_returned(ref)
        self.rollouts.watch([call.engine for call in self._pending_calls.values()], "run_groups")
        return [ref for ref in ended if ref in others]

    def _allowed_batches(self) -> int:
        """Batches that groups may be outstanding for (see Capacity above)."""
        learning = self._target_version - self._engine_version
        # After the last iteration nobody would learn from further batches.
        remaining = self.config.iterations - self._target_version
        return min(self.config.staleness + 1 - learning, remaining)

    def _free_capacity(self) -> int:
        return self._allowed_batches() * self.config.prompts - self.table.num_outstanding

    def _call_idle_engines(self) -> None:
        """Has every idle engine that holds groups work on them, for the first batch that still
        needs some."""
        busy = {call.engine for call in self._pending_calls.values()}
        seconds = None
        if self.config.staleness:
            seconds = RETURN_S
        # With staleness 0 an engine may keep its groups until all are finished: nobody waits for a
        # part of a batch. Otherwise it returns what it has, so that others are scored meanwhile.
        for engine in range(len(self.rollouts)):
            num_in_flight = self.table.num_in_flight(engine)
            if engine in busy or not num_in_flight:
                continue
            number = self._next_open_batch()
            if number is None:
                return
            batch = self._open_batches[number]
            max_groups = min(num_in_flight, self.config.prompts - batch.num_taken)
            batch.reserved += max_groups
            min_version = self._target_version + number - self.config.staleness
            new = self.table.take_unsent(engine)
            status, samples = self.rollouts.submit_run_groups(
                engine, new, self.decoding, self.end_token, max_groups, min_version, seconds
            )
            self._pending_calls[status] = PendingCall(engine, batch, max_groups, samples)

    def _next_open_batch(self) -> int | None:
        """Number of the first open batch that still needs groups, or None. Batch 0 is for the
        target version, batch 1 for the version after it, and so on."""
        for number in range(self._allowed_batches()):
            if number == len(self._open_batches):
                self._open_batches.append(OpenBatch())
            if self._open_batches[number].num_taken < self.config.prompts:
                return number
        return None

    def _on_returned(self, ref: ray.ObjectRef) -> None:
        """Sends what an engine has finished to a scoring actor, and queues again what it has
        dropped."""
        call = self._pending_calls.pop(ref)
        status: GroupStatus = self.rollouts.result(ref, call.engine, "run_groups")
        batch = call.batch
        batch.reserved -= call.max_groups
        self.table.requeue(call.engine, status.dropped)
        self.num_stale += len(status.dropped)
        if not status.finished:
            return
        self.table.finish(call.engine, status.finished)
        batch.finished += status.finished
        batch.finished_at += [time.monotonic()] * len(status.finished)
        # Only the rows of this part, since Ray copies the arguments of a call.
        rows = self.table.rows_of(status.finished)
        part = self.rewards.submit(call.engine, call.samples, rows, self.decoding.temperature)
        batch.parts.append(part)
