"""The supervised tasks of a learner rank: next-token loss (pretrain, sft) and ranking loss (reward).

`actors.learner` runs one of these on every rank. Each rank reads the same files and draws the same order, so a
step needs no data from the driver; the losses divide by counts over the whole batch, so the update does not
depend on the number of ranks or on how a batch is cut.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch.distributed as dist
from torch import Tensor, nn

from learners.config import LearnerConfig, OptimizerConfig
from learners.data.batching import PackedBatch, pack, plan_micro_batches
from learners.deepspeed_engine import DeepSpeedEngine
from learners.distributed import summed_over_ranks
from learners.models import check_packing_isolation


class SupervisedTask(ABC):
    """Order of the data, steps and validation shared by both losses; an item is what a batch is counted in."""

    def __init__(
        self,
        module: nn.Module,
        learner: LearnerConfig,
        optimizer: OptimizerConfig,
        held: np.ndarray,
        batch_size: int,
        steps: int | None,
        epochs: int,
        seed: int,
        pad_token: int,
    ) -> None:
        shuffled = np.random.default_rng(seed).permutation(len(held))
        self.validation, self.training = shuffled[held[shuffled]], shuffled[~held[shuffled]]
        self.batch_size = min(batch_size, len(self.training))
        self.total_steps = steps if steps is not None else epochs * (len(self.training) // self.batch_size)
        self.learner, self.seed, self.pad_token = learner, seed, pad_token
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.padded = 0
        if learner.packing:
            check_packing_isolation(module.model)  # type: ignore[arg-type]
        self.engine = DeepSpeedEngine(module, learner, optimizer, learner.dtype, self.total_steps)

    def batch(self, step: int) -> np.ndarray:
        """Items of one step: consecutive ones of a fresh permutation each epoch."""
        per_epoch = len(self.training) // self.batch_size
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(self.training)
        return order[place * self.batch_size : (place + 1) * self.batch_size]

    def train(self, count: int) -> list[dict[str, float]]:
        """Runs up to `count` further steps; one dict of metrics a step (the same on every rank)."""
        return [
            self._step(self.batch(self.engine.steps))
            for _ in range(min(count, self.total_steps - self.engine.steps))
        ]

    def _step(self, items: np.ndarray) -> dict[str, float]:
        micros = self.plan(items)[self.rank]
        weight = self.weight(items)
        total, tokens, self.padded = 0.0, 0.0, 0
        for i, micro in enumerate(micros):
            loss = self.loss(micro) / weight
            self.engine.backward(loss, last=i == len(micros) - 1)
            total += float(loss.detach())
            tokens += self.tokens(micro)
        total, tokens, padded = summed_over_ranks([total, tokens, self.padded])
        return {
            "loss/train": total,
            "tokens": tokens,
            "batch/padding": 1 - tokens / padded,
            **self.engine.step(),
        }

    def plan(self, items: np.ndarray) -> list[list[list[int]]]:
        costs, learner = [self.cost(i) for i in items], self.learner
        plan = plan_micro_batches(costs, self.ranks, learner.micro_batch_tokens, learner.packing)
        return [[[int(items[i]) for i in micro] for micro in rank] for rank in plan]

    def rows(self, sequences: Sequence[np.ndarray], chosen: Sequence[np.ndarray]) -> PackedBatch:
        rows = pack(sequences, chosen, self.pad_token, self.learner.packing)
        self.padded += rows.tokens_RT.numel()
        return rows

    @abstractmethod
    def cost(self, item: int) -> int:
        """Tokens that an item takes in a micro-batch."""

    @abstractmethod
    def tokens(self, micro: Sequence[int]) -> int:
        """Tokens of the items of a micro-batch."""

    @abstractmethod
    def weight(self, items: np.ndarray) -> float:
        """What the summed loss of these items is divided by."""

    @abstractmethod
    def loss(self, micro: Sequence[int]) -> Tensor:
        """Summed loss of one micro-batch (which may be empty)."""
