"""Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290): the ranking loss on implicit
rewards, beta x log(policy / reference), over all pairs of a prompt.

The reference is the policy that training starts from. Its log-probabilities are computed once before the
first step (`measure_reference`) and stored, so that no second model is in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.files import atomic_path
from learners.data.datasets import RankingData
from learners.distributed import summed_over_ranks
from learners.models import PolicyModule
from learners.supervised.config import DPOConfig
from learners.supervised.losses import implicit_rewards, ranking_pairs
from learners.supervised.ranking import RankingTask
from learners.supervised.task import Schedule
from learners.task import TaskContext


class DPOTask(RankingTask):
    """The policy: the score of a response is its implicit reward."""

    def __init__(
        self, module: PolicyModule, data: RankingData, config: DPOConfig, context: TaskContext
    ) -> None:
        self.beta, self.label_smoothing = config.beta, config.label_smoothing
        self.ref_logprobs_S: np.ndarray | None = None
        """float32 (S,): of each response under the reference, summed over its tokens."""
        schedule = Schedule(config.batch_size, config.epochs)
        super().__init__(module, data, config.optimizer, schedule, context)

    def shared_length(self, item: int) -> int:
        """Tokens of responses are targets, so the prompt alone is shared, even where responses begin
        alike."""
        return min(int(self.data.prompt_lengths_G[item]), super().shared_length(item))

    def measure_reference(self, file: Path) -> None:
        """Computes the log-probabilities of all responses under the policy as it is now, on all ranks,
        and has rank 0 write them to `file`."""
        logprobs_S = np.zeros(len(self.data.offsets) - 1)
        groups = np.arange(len(self.data.groups) - 1)
        with torch.no_grad():
            for micro in self.own_micro_batches(groups):
                parts = self.by_prompt(self.response_logprobs(micro), micro)
                for item, logprobs_K in zip(micro, parts, strict=False):
                    first, end = self.data.groups[item], self.data.groups[item + 1]
                    logprobs_S[first:end] = logprobs_K.float().cpu().numpy()
        # Each rank has computed other prompts, so the sum puts their log-probabilities together.
        summed = summed_over_ranks(logprobs_S.tolist())
        self.ref_logprobs_S = np.array(summed, dtype=np.float32)
        if torch.distributed.get_rank() == 0:
            with atomic_path(file) as partial, open(partial, "wb") as opened:
                np.save(opened, self.ref_logprobs_S)

    def load_reference(self, file: Path) -> None:
        """Takes what `measure_reference` has written at an earlier start."""
        self.ref_logprobs_S = np.load(file)

    def response_logprobs(self, micro: Sequence[int]) -> Tensor:
        """(B,): the log-probability (nats) of each response to the prompts of a micro-batch, summed over its
        tokens, the end token included."""
        sequences, shared = self.group_sequences(micro)
        targets = []
        for item in micro:
            prompt_length = self.data.prompt_lengths_G[item]
            targets += [np.arange(len(sequence)) >= prompt_length for sequence in self.data.group(item)]
        packed = self.pack(sequences, targets, shared)
        logprobs_N, _ = self.engine(
            packed.tokens_RT,
            packed.target_mask_RT,
            packed.positions_RT,
            packed.before_N,
            packed.attention_RTT,
        )
        counts = [int(targets[b].sum()) for b in packed.order]
        owner_N = torch.from_numpy(np.repeat(packed.order, counts).astype(np.int64))
        return logprobs_N.new_zeros(len(sequences)).index_add(0, owner_N.to(logprobs_N.device), logprobs_N)

    def scores(self, micro: Sequence[int]) -> list[Tensor]:
        if self.ref_logprobs_S is None:
            raise RuntimeError("the reference's log-probabilities are not there; measure or load them first")
        reference = [np.zeros(0, dtype=np.float32)]
        for item in micro:
            reference.append(self.ref_logprobs_S[self.data.groups[item] : self.data.groups[item + 1]])
        logprobs_B = self.response_logprobs(micro)
        ref_logprobs_B = torch.from_numpy(np.concatenate(reference)).to(logprobs_B.device)
        return self.by_prompt(implicit_rewards(logprobs_B, ref_logprobs_B, self.beta), micro)

    def validate(self) -> dict[str, float]:
        """Loss and pair accuracy on the validation prompts, and the mean implicit reward of the better and
        of the worse response of a pair: a better one that falls too is the known failure of DPO."""
        loss_sum, better, worse = 0.0, [0.0], [0.0]
        scores = self.validation_scores()
        for item, scores_K in scores.items():
            loss_sum += float(self.prompt_loss(item, scores_K))
            for members, ranks in self.rankings[item]:
                for i, j in ranking_pairs(ranks):
                    better.append(float(scores_K[members[i]]))
                    worse.append(float(scores_K[members[j]]))
        pairs = len(better) - 1
        loss_sum, better_sum, worse_sum, count = summed_over_ranks([loss_sum, sum(better), sum(worse), pairs])
        count = max(1.0, count)
        return {
            "loss/validation": loss_sum / self.loss_denominator(self.validation),
            "rewards/better": better_sum / count,
            "rewards/worse": worse_sum / count,
            "rewards/margin": (better_sum - worse_sum) / count,
            **self.pair_agreement(scores).rates(),
        }
