"""Ranking loss over all pairs of a prompt: the task of reward-model training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from learners.config import RewardModelConfig
from learners.data.batching import common_prefix, group_length
from learners.data.datasets import RankingData, TokenData
from learners.distributed import summed_over_ranks
from learners.models import ScalarModule
from learners.supervised.agreement import PairAgreement
from learners.supervised.losses import ranking_loss, ranking_pairs
from learners.supervised.task import Schedule, SupervisedTask
from learners.task import TaskContext


class RewardModelTask(SupervisedTask):
    """Ranking loss; an item is a prompt with all its responses and pairs (Ouyang et al. 2022,
    section 3.5)."""

    items_are_groups = True

    def __init__(
        self,
        module: ScalarModule,
        data: RankingData,
        config: RewardModelConfig,
        context: TaskContext,
    ) -> None:
        self.data, self.margin = data, config.margin
        self.rankings = data.rankings()
        schedule = Schedule(config.batch_size, config.epochs)
        super().__init__(module, data.is_validation_G, config.optimizer, schedule, context)

    def token_cost(self, item: int) -> int:
        """The responses to a prompt share a micro-batch; unpacked, each takes as much as the
        longest."""
        sequences = self.data.group(item)
        lengths = [len(sequence) for sequence in sequences]
        if self.shares_prompts:
            return group_length(lengths, common_prefix(sequences))
        return len(lengths) * max(lengths)

    def num_tokens(self, micro: Sequence[int]) -> int:
        total = 0
        for item in micro:
            total += sum(len(sequence) for sequence in self.data.group(item))
        return total

    def loss_denominator(self, items: np.ndarray) -> float:
        """Number of prompts with at least one pair that is not tied."""
        with_pairs = 0
        for item in items:
            with_pairs += any(ranking_pairs(ranks) for _, ranks in self.rankings[item])
        return max(1.0, float(with_pairs))

    def scores(self, micro: Sequence[int]) -> list[Tensor]:
        """Scores (K,) of the K different responses to each prompt of a micro-batch. An empty
        micro-batch gives one empty tensor, so that its loss has the graph that the backward pass
        of the other ranks waits for."""
        groups = [self.data.group(item) for item in micro]
        sequences = [sequence for group in groups for sequence in group]
        prompt_lengths: list[int] | None = None
        if self.shares_prompts:
            prompt_lengths = []
            for group in groups:
                prompt_lengths += [common_prefix(group)] * len(group)
        scores_B = self.last_scalars(sequences, prompt_lengths)
        if not groups:
            return [scores_B]
        return list(scores_B.split([len(group) for group in groups]))

    def last_scalars(
        self, sequences: Sequence[np.ndarray], prompt_lengths: list[int] | None = None
    ) -> Tensor:
        """(B,): the scalar at the last token of each sequence. With `prompt_lengths`, sequences that
        begin with the same prompt share it."""
        no_targets = [np.zeros(len(sequence), dtype=bool) for sequence in sequences]
        packed = self.pack(sequences, no_targets, prompt_lengths)
        scalars_RT = self.engine(packed.tokens_RT, packed.positions_RT, packed.attention_RTT)
        in_packed_order = scalars_RT.flatten()[packed.last_S.to(scalars_RT.device)]
        return in_packed_order[np.argsort(packed.order)]

    def loss(self, micro: Sequence[int]) -> Tensor:
        scores = self.scores(micro)
        # Zero, but part of the graph: a rank without work must run the same backward pass.
        total = scores[0].sum() * 0
        for item, scores_K in zip(micro, scores, strict=False):
            losses = []
            for members, ranks in self.rankings[item]:
                losses.append(ranking_loss(scores_K[members], ranks, self.margin))
            # A mean, so that a prompt that was ranked often counts no more than another.
            total = total + torch.stack(losses).mean()
        return total

    def pair_agreement(self) -> PairAgreement:
        """Counts of agreeing pairs for each validation prompt, over all ranks."""
        agreement = PairAgreement.from_array(np.zeros((6, len(self.validation))))
        position = {int(item): i for i, item in enumerate(self.validation)}
        with torch.no_grad():
            for micro in self.own_micro_batches(self.validation):
                for item, scores_K in zip(micro, self.scores(micro), strict=False):
                    self._count_pairs(agreement, position[item], item, scores_K.tolist())
        # Each rank has counted other prompts, so the sum puts their counts together.
        counts = agreement.to_array()
        summed = summed_over_ranks(counts.ravel().tolist())
        return PairAgreement.from_array(np.array(summed).reshape(counts.shape))

    def _count_pairs(self, agreement: PairAgreement, prompt: int, item: int, scores: list[float]) -> None:
        lengths = [len(sequence) for sequence in self.data.group(item)]
        for members, ranks in self.rankings[item]:
            agreement.labelers.add(prompt, [scores[m] for m in members], ranks)
            agreement.length.add(prompt, [lengths[m] for m in members], ranks)
        members, ranks = self.data.oracle_ranking(item)
        agreement.oracle.add(prompt, [scores[m] for m in members], ranks)

    def validate(self) -> dict[str, float]:
        return self.pair_agreement().rates()

    def center_rewards(self, demonstrations: TokenData) -> float:
        """Sets the model's bias so that the demonstrations score 0 on average; returns the mean
        that was subtracted."""
        score_sum = 0.0
        with torch.no_grad():
            for micro in self.context.micro_batches(demonstrations.lengths_S, self.packing):
                sequences = [demonstrations.sequence(s) for s in micro]
                score_sum += float(self.last_scalars(sequences).sum())
        mean = summed_over_ranks([score_sum])[0] / len(demonstrations.lengths_S)
        config = self.engine.module.model.config
        config.reward_bias = getattr(config, "reward_bias", 0.0) + mean
        return mean
