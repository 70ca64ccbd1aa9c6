"""Ranking loss over all pairs of a prompt: the task of reward-model training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from learners.data.batching import plan_micro_batches
from learners.data.datasets import RankingData, TokenData
from learners.distributed import summed_over_ranks
from learners.models import ScalarModule
from learners.supervised.losses import ranking_loss, ranking_pairs
from learners.supervised.task import SupervisedTask


class RewardModelTask(SupervisedTask):
    """Ranking loss; an item is a prompt with all its responses and pairs (Ouyang et al. 2022, section 3.5)."""

    def __init__(self, module: ScalarModule, data: RankingData, margin: float, **options: object) -> None:
        self.data, self.margin = data, margin
        self.rankings = data.rankings()
        super().__init__(module, held=data.is_validation_G, **options)  # type: ignore[arg-type]

    def cost(self, item: int) -> int:
        lengths = [len(s) for s in self.data.group(item)]
        return len(lengths) * max(lengths)

    def tokens(self, micro: Sequence[int]) -> int:
        return sum(len(s) for g in micro for s in self.data.group(g))

    def weight(self, items: np.ndarray) -> float:
        return max(1.0, float(sum(any(ranking_pairs(ranks) for _, ranks in self.rankings[g]) for g in items)))

    def scores(self, micro: Sequence[int]) -> list[Tensor]:
        """Per prompt, the scores (K,) of its different responses: the scalar at the last token of each."""
        groups = [self.data.group(g) for g in micro]
        scores_B = self.last_scalars([s for group in groups for s in group])
        return list(scores_B.split([len(group) for group in groups])) if groups else [scores_B]

    def last_scalars(self, sequences: Sequence[np.ndarray]) -> Tensor:
        """(S,): the scalar at the last token of each sequence."""
        rows = self.rows(sequences, [np.arange(len(s)) == len(s) - 1 for s in sequences])
        scalars_RT = self.engine(rows.tokens_RT, rows.positions_RT)
        return scalars_RT[rows.target_mask_RT.to(scalars_RT.device)][np.argsort(rows.order)]

    def loss(self, micro: Sequence[int]) -> Tensor:
        scores = self.scores(micro)
        total = scores[0].sum() * 0
        for g, scores_K in zip(micro, scores, strict=False):
            losses = [
                ranking_loss(scores_K[members], ranks, self.margin) for members, ranks in self.rankings[g]
            ]
            total = total + torch.stack(losses).mean()
        return total

    def agreement(self) -> np.ndarray:
        """(held-out prompts, 6): how many non-tied pairs the scores order as the labelers do and how many there are, the
        same for length alone (longer is better), and for the truth where it is known."""
        counts = np.zeros((len(self.validation), 6))
        row = {int(g): i for i, g in enumerate(self.validation)}
        with torch.no_grad():
            for micro in self.plan(self.validation)[self.rank]:
                for g, scores_K in zip(micro, self.scores(micro), strict=False):
                    scores, lengths = scores_K.tolist(), [len(s) for s in self.data.group(g)]
                    for members, ranks in self.rankings[g]:
                        counts[row[g], 0:2] += pair_agreement([scores[m] for m in members], ranks)
                        counts[row[g], 2:4] += pair_agreement([lengths[m] for m in members], ranks)
                    if len(self.data.truth):
                        truth = self.data.truth[self.data.groups[g] : self.data.groups[g + 1]].tolist()
                        counts[row[g], 4:6] += pair_agreement(scores, truth)
        return np.array(summed_over_ranks(counts.ravel().tolist())).reshape(counts.shape)

    def validate(self) -> dict[str, float]:
        return agreement_rates(self.agreement())

    def center(self, demonstrations: TokenData) -> float:
        """Sets the model's bias so that the demonstrations score 0 on average; returns the mean taken off."""
        learner = self.learner
        plan = plan_micro_batches(
            demonstrations.lengths_S, self.ranks, learner.micro_batch_tokens, learner.packing
        )
        total = 0.0
        with torch.no_grad():
            for micro in plan[self.rank]:
                total += float(self.last_scalars([demonstrations.sequence(i) for i in micro]).sum())
        mean = summed_over_ranks([total])[0] / len(demonstrations.lengths_S)
        config = self.engine.module.model.config
        config.reward_bias = getattr(config, "reward_bias", 0.0) + mean
        return mean


def pair_agreement(scores: Sequence[float], ranks: Sequence[int]) -> tuple[int, int]:
    """(pairs ordered alike, pairs): over the non-tied pairs of one ranking; equal scores count as wrong."""
    pairs = ranking_pairs(list(ranks))
    return sum(scores[better] > scores[worse] for better, worse in pairs), len(pairs)


def agreement_rates(counts: np.ndarray) -> dict[str, float]:
    """Rates of `RewardModelTask.agreement`, that of the labelers with a 95% interval. The pairs of a prompt hang together, so
    its variance is that of a ratio of sums over prompts (Cochran 1977, Sampling Techniques, eq. 2.46)."""
    (right_G, pairs_G), (long, long_pairs), (true, true_pairs) = (
        counts[:, 0:2].T,
        counts[:, 2:4].sum(0),
        counts[:, 4:6].sum(0),
    )
    pairs = max(1.0, pairs_G.sum())
    rate = right_G.sum() / pairs
    margin = 1.96 * float(((right_G - rate * pairs_G) ** 2).sum()) ** 0.5 / pairs
    found = {
        "accuracy/labelers": rate,
        "accuracy/low": rate - margin,
        "accuracy/high": rate + margin,
        "pairs": pairs,
    }
    found["accuracy/length_only"] = long / max(1.0, long_pairs)
    if true_pairs:
        found |= {"accuracy/truth": true / true_pairs, "truth_pairs": true_pairs}
    return {name: float(value) for name, value in found.items()}
