"""The ranking loss of the reward model, as pure functions of tensors (Ouyang et al. 2022,
arXiv:2203.02155, Eq. 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def ranking_pairs(ranks: Sequence[int]) -> list[tuple[int, int]]:
    """(better, worse) index pairs of one ranking, 1 being best; ties make no pair."""
    return [(i, j) for i, a in enumerate(ranks) for j, b in enumerate(ranks) if a < b]


def ranking_loss(scores_K: Tensor, ranks: Sequence[int], margin: float = 0.0) -> Tensor:
    """Loss of one prompt with K ranked responses: mean over its non-tied pairs of -log
    sigmoid(better - worse).

    Ouyang et al. 2022 (arXiv:2203.02155), Eq. 1; ties are dropped (C.2), and a prompt with
    nothing but ties costs 0. With a margin the scores must differ by that much for every rank
    between the two (Touvron et al. 2023, arXiv:2307.09288, Eq. 2, whose margin grows with the
    strength of the preference).
    """
    pairs = ranking_pairs(ranks)
    if not pairs:
        return scores_K.sum() * 0
    better = [i for i, _ in pairs]
    worse = [j for _, j in pairs]
    rank_gap = torch.tensor([ranks[j] - ranks[i] for i, j in pairs], device=scores_K.device)
    return -F.logsigmoid(scores_K[better] - scores_K[worse] - margin * rank_gap).mean()
