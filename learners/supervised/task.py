"""The supervised tasks of a learner rank: next-token loss (pretrain, sft) and ranking loss
(reward).

Each rank reads the same files and draws the same order, so a step needs no data from the driver.
The losses divide by counts over the whole batch, so the update does not depend on the number of
ranks or on how a batch is cut into micro-batches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from common.random_streams import Stream, generator
from learners.config import OptimizerConfig
from learners.data.packing import PackedBatch
from learners.deepspeed_engine import DeepSpeedEngine
from learners.distributed import summed_over_ranks
from learners.forward_checks import attention_span, can_share_prompts, check_forward
from learners.models import PolicyModule, ScalarModule
from learners.task import Task, TaskContext


@dataclass(frozen=True)
class Schedule:
    """How long a supervised task trains, and on how much at once."""

    batch_size: int
    """Items of one optimizer step, over all ranks."""
    epochs: int = 1
    """Passes over the training items."""
    steps: int | None = None
    """Optimizer steps, instead of whole passes."""


class SupervisedTask(Task, ABC):
    """Order of the data and steps, shared by both losses. An item is what a batch is counted in."""

    items_are_groups = False
    """Whether an item is several sequences that begin with the same prompt."""

    def __init__(
        self,
        module: PolicyModule | ScalarModule,
        is_validation: np.ndarray,
        optimizer: OptimizerConfig,
        schedule: Schedule,
        context: TaskContext,
    ) -> None:
        self.validation = np.flatnonzero(is_validation)
        self.training = np.flatnonzero(~is_validation)
        self.batch_size = min(schedule.batch_size, len(self.training))
        self.steps_per_epoch = len(self.training) // self.batch_size
        self.total_steps = schedule.epochs * self.steps_per_epoch
        if schedule.steps is not None:
            self.total_steps = schedule.steps
        self.packed_tokens, self.padded_tokens = 0, 0
        """Tokens in the forward passes of a step, without and with padding."""
        dtype = context.learner.dtype
        engine = DeepSpeedEngine(module, context.learner, optimizer, dtype, self.total_steps)
        # On the device, where the model is now. Before training, since mixed-up sequences would show
        # only as a slightly worse loss.
        packing = context.learner.packing
        check_forward(module, packing)
        self.span = attention_span(module.model) if packing else None
        """How sequences stand in rows (`learners.data.batching`)."""
        self.shares_prompts = packing and self.items_are_groups and can_share_prompts(module.model)
        super().__init__({"model": engine}, context)

    def batch(self, step: int) -> np.ndarray:
        """Items of one step: consecutive ones of a new permutation each epoch."""
        epoch, index = divmod(step, self.steps_per_epoch)
        # Drawn anew for each step: a restored task needs only the number of steps done.
        rng = generator(self.context.seed, Stream.SUPERVISED_ORDER, epoch)
        start = index * self.batch_size
        return rng.permutation(self.training)[start : start + self.batch_size]

    def train(self, count: int) -> list[dict[str, float]]:
        """Runs up to `count` further steps; one dict of metrics a step (the same on every rank)."""
        remaining = self.total_steps - self.steps
        return [self._step(self.batch(self.steps)) for _ in range(min(count, remaining))]

    def _step(self, items: np.ndarray) -> dict[str, float]:
        micro_batches = self.own_micro_batches(items)
        denominator = self.loss_denominator(items)
        loss_sum, num_tokens, self.packed_tokens, self.padded_tokens = 0.0, 0.0, 0, 0
        for i, micro in enumerate(micro_batches):
            loss = self.loss(micro) / denominator
            self.engine.backward(loss, last=i == len(micro_batches) - 1)
            loss_sum += float(loss.detach())
            num_tokens += self.num_tokens(micro)
        # One collective for all four.
        sums = summed_over_ranks([loss_sum, num_tokens, self.packed_tokens, self.padded_tokens])
        loss_sum, num_tokens, packed_tokens, padded_tokens = sums
        return {
            "loss/train": loss_sum,
            "tokens": num_tokens,
            "batch/padding": 1 - packed_tokens / padded_tokens,
            **self.engine.step(),
        }

    def own_micro_batches(self, items: np.ndarray) -> list[list[int]]:
        """This rank's micro-batches of these items."""
        costs = [self.token_cost(item) for item in items]
        micro_batches = self.context.micro_batches(costs, self.span)
        return [items[micro].tolist() for micro in micro_batches]

    def pack(
        self,
        sequences: Sequence[np.ndarray],
        targets: Sequence[np.ndarray],
        prompt_lengths: list[int] | None = None,
    ) -> PackedBatch:
        """Sequences, and a bool mask over the tokens of each, as the rows of one forward pass."""
        packed = self.context.pack(sequences, targets, self.span, prompt_lengths)
        self.packed_tokens += packed.num_tokens
        self.padded_tokens += packed.tokens_RT.numel()
        return packed

    @abstractmethod
    def token_cost(self, item: int) -> int:
        """Tokens that an item takes in a micro-batch."""

    @abstractmethod
    def num_tokens(self, micro: Sequence[int]) -> int:
        """Tokens of the sequences of a micro-batch, without padding; a prompt counts once for each
        sequence."""

    @abstractmethod
    def loss_denominator(self, items: np.ndarray) -> float:
        """What the summed loss of these items is divided by."""

    @abstractmethod
    def loss(self, micro: Sequence[int]) -> Tensor:
        """Summed loss of one micro-batch (which may be empty)."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Metrics on the validation items."""
