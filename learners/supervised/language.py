"""Next-token loss on the tokens of a loss mask: the task of pretraining and SFT."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from learners.config import OptimizerConfig
from learners.data.datasets import TokenData
from learners.distributed import summed_over_ranks
from learners.models import PolicyModule
from learners.supervised.task import Schedule, SupervisedTask
from learners.task import TaskContext


class LanguageModelTask(SupervisedTask):
    """Next-token loss on the tokens of the loss mask; an item is a sequence."""

    def __init__(
        self,
        module: PolicyModule,
        data: TokenData,
        optimizer: OptimizerConfig,
        schedule: Schedule,
        context: TaskContext,
    ) -> None:
        self.data = data
        super().__init__(module, data.is_validation_S, optimizer, schedule, context)

    def token_cost(self, item: int) -> int:
        return int(self.data.lengths_S[item])

    def num_tokens(self, micro: Sequence[int]) -> int:
        return sum(self.token_cost(item) for item in micro)

    def loss_denominator(self, items: np.ndarray) -> float:
        """Number of tokens in the loss."""
        return max(1.0, float(sum(self.data.loss_mask(item).sum() for item in items)))

    def loss(self, micro: Sequence[int]) -> Tensor:
        sequences = [self.data.sequence(item) for item in micro]
        packed = self.pack(sequences, [self.data.loss_mask(item) for item in micro])
        logprobs_N, _ = self.engine(packed.tokens_RT, packed.target_mask_RT, packed.positions_RT)
        return -logprobs_N.sum()

    def validate(self) -> dict[str, float]:
        """Mean loss per token in the loss mask, over the validation sequences, in nats."""
        loss_sum = 0.0
        with torch.no_grad():
            for micro in self.own_micro_batches(self.validation):
                loss_sum += float(self.loss(micro))
        mean = summed_over_ranks([loss_sum])[0] / self.loss_denominator(self.validation)
        return {"loss/validation": mean}
