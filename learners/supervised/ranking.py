"""Ranking loss over all pairs of a prompt: what reward-model training and DPO share, and the first of
them (`learners.supervised.dpo` is the other)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from learners.config import OptimizerConfig, RewardModelConfig
from learners.data.batching import common_prefix, group_by_prompt, group_length
from learners.data.datasets import RankingData, TokenData
from learners.distributed import summed_over_ranks
from learners.models import PolicyModule, ScalarModule
from learners.supervised.agreement import PairAgreement
from learners.supervised.losses import ranking_loss, ranking_pairs
from learners.supervised.task import Schedule, SupervisedTask
from learners.task import TaskContext


class RankingTask(SupervisedTask):
    """Ranking loss; an item is a prompt with all its responses and pairs (Ouyang et al. 2022,
    section 3.5)."""

    items_are_groups = True
    margin = 0.0
    label_smoothing = 0.0
    margin_by_level = False
    """Whether the margin follows what labelers said beside the ranks, and not the ranks."""

    def __init__(
        self,
        module: PolicyModule | ScalarModule,
        data: RankingData,
        optimizer: OptimizerConfig,
        schedule: Schedule,
        context: TaskContext,
    ) -> None:
        self.data = data
        self.rankings, self.levels, self.weights = data.rankings(), data.levels(), data.weights()
        super().__init__(module, data.is_validation_G, optimizer, schedule, context)

    @abstractmethod
    def scores(self, micro: Sequence[int]) -> list[Tensor]:
        """Scores (K,) of the K different responses to each prompt of a micro-batch. An empty
        micro-batch gives one empty tensor, so that its loss has the graph that the backward pass
        of the other ranks waits for."""

    def token_cost(self, item: int) -> int:
        """The responses to a prompt share a micro-batch; unpacked, each takes as much as the
        longest."""
        lengths = [len(sequence) for sequence in self.data.group(item)]
        if self.shares_prompts:
            return self._shared_cost(item, lengths)
        return len(lengths) * max(lengths)

    def _shared_cost(self, item: int, lengths: list[int]) -> int:
        """With the prompt once for each row that the group is divided over."""
        shared = self.shared_length(item)
        groups = group_by_prompt(self.data.group(item), [shared] * len(lengths), self.span)
        return sum(group_length([lengths[i] for i in group], shared) for group in groups)

    def num_tokens(self, micro: Sequence[int]) -> int:
        total = 0
        for item in micro:
            total += sum(len(sequence) for sequence in self.data.group(item))
        return total

    def shared_length(self, item: int) -> int:
        """How many tokens the sequences of a prompt share in a packed row."""
        return common_prefix(self.data.group(item))

    def loss_denominator(self, items: np.ndarray) -> float:
        """Number of prompts with at least one pair that is not tied."""
        with_pairs = 0
        for item in items:
            with_pairs += any(ranking_pairs(ranks) for _, ranks in self.rankings[item])
        return max(1.0, float(with_pairs))

    def group_sequences(self, micro: Sequence[int]) -> tuple[list[np.ndarray], list[int] | None]:
        """The sequences of all prompts of a micro-batch, and for each how many tokens it shares; None
        where prompts are not shared."""
        sequences: list[np.ndarray] = []
        shared: list[int] | None = [] if self.shares_prompts else None
        for item in micro:
            group = self.data.group(item)
            sequences += group
            if shared is not None:
                shared += [self.shared_length(item)] * len(group)
        return sequences, shared

    def by_prompt(self, values_B: Tensor, micro: Sequence[int]) -> list[Tensor]:
        """One value for each of those sequences, as one tensor for each prompt."""
        if not micro:
            return [values_B]
        return list(values_B.split([len(self.data.group(item)) for item in micro]))

    def loss(self, micro: Sequence[int]) -> Tensor:
        scores = self.scores(micro)
        # Zero, but part of the graph: a rank without work must run the same backward pass.
        total = scores[0].sum() * 0
        for item, scores_K in zip(micro, scores, strict=False):
            total = total + self.prompt_loss(item, scores_K)
        return total

    def prompt_loss(self, item: int, scores_K: Tensor) -> Tensor:
        losses = []
        for (members, ranks), levels, weight in zip(
            self.rankings[item], self.levels[item], self.weights[item], strict=True
        ):
            strengths = levels if self.margin_by_level else None
            loss = ranking_loss(scores_K[members], ranks, self.margin, self.label_smoothing, strengths)
            losses.append(weight * loss)
        # A mean, so that a prompt that was ranked often counts no more than another.
        return torch.stack(losses).mean()

    def validation_scores(self) -> dict[int, Tensor]:
        """Scores (K,) of this rank's validation prompts, by item."""
        by_item: dict[int, Tensor] = {}
        with torch.no_grad():
            for micro in self.own_micro_batches(self.validation):
                by_item |= dict(zip(micro, self.scores(micro), strict=False))
        return by_item

    def pair_agreement(self, scores: dict[int, Tensor] | None = None) -> PairAgreement:
        """Counts of agreeing pairs for each validation prompt, over all ranks; with `scores` of
        `validation_scores`, these are not computed again."""
        agreement = PairAgreement.from_array(np.zeros((6, len(self.validation))))
        position = {int(item): i for i, item in enumerate(self.validation)}
        if scores is None:
            scores = self.validation_scores()
        for item, scores_K in scores.items():
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


class RewardModelTask(RankingTask):
    """The reward model: the score of a response is its scalar at the last token."""

    def __init__(
        self,
        module: ScalarModule,
        data: RankingData,
        config: RewardModelConfig,
        context: TaskContext,
    ) -> None:
        self.margin = config.margin
        self.margin_by_level = config.margin_from != "rank"
        schedule = Schedule(config.batch_size, config.epochs)
        super().__init__(module, data, config.optimizer, schedule, context)

    def scores(self, micro: Sequence[int]) -> list[Tensor]:
        sequences, shared = self.group_sequences(micro)
        return self.by_prompt(self.last_scalars(sequences, shared), micro)

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

    def validate(self) -> dict[str, float]:
        return self.pair_agreement().rates()

    def center_rewards(self, demonstrations: TokenData) -> float:
        """Sets the model's bias so that the demonstrations score 0 on average; returns the mean
        that was subtracted."""
        score_sum = 0.0
        with torch.no_grad():
            for micro in self.context.micro_batches(demonstrations.lengths_S, self.span):
                sequences = [demonstrations.sequence(s) for s in micro]
                score_sum += float(self.last_scalars(sequences).sum())
        mean = summed_over_ranks([score_sum])[0] / len(demonstrations.lengths_S)
        config = self.engine.module.model.config
        config.reward_bias = getattr(config, "reward_bias", 0.0) + mean
        return mean
