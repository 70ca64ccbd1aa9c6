"""Next-token loss on marked tokens: the task of pretraining and SFT."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from learners.data.datasets import TokenData
from learners.distributed import summed_over_ranks
from learners.models import PolicyModule
from learners.supervised.task import SupervisedTask


class LanguageModelTask(SupervisedTask):
    """Next-token loss on the tokens marked for learning; an item is a sequence."""

    def __init__(self, module: PolicyModule, data: TokenData, **options: object) -> None:
        self.data = data
        super().__init__(module, held=data.is_validation_S, **options)  # type: ignore[arg-type]

    def cost(self, item: int) -> int:
        return int(self.data.lengths_S[item])

    def tokens(self, micro: Sequence[int]) -> int:
        return sum(self.cost(i) for i in micro)

    def weight(self, items: np.ndarray) -> float:
        return max(1.0, float(sum(self.data.loss_mask(i).sum() for i in items)))

    def loss(self, micro: Sequence[int]) -> Tensor:
        rows = self.rows([self.data.sequence(i) for i in micro], [self.data.loss_mask(i) for i in micro])
        logprobs_N, _ = self.engine(rows.tokens_RT, rows.target_mask_RT, rows.positions_RT)
        return -logprobs_N.sum()

    def validate(self) -> dict[str, float]:
        """Mean loss per learned token on the held-out sequences, in nats."""
        with torch.no_grad():
            total = sum(float(self.loss(micro)) for micro in self.plan(self.validation)[self.rank])
        return {"loss/validation": summed_over_ranks([total])[0] / self.weight(self.validation)}
