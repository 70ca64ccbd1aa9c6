"""The loss on rankings, as pure functions of tensors: of the reward model on its scores (Ouyang et al.
2022, arXiv:2203.02155, Eq. 1), and of DPO on implicit rewards (Rafailov et al. 2023, arXiv:2305.18290,
Eq. 7)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def ranking_pairs(ranks: Sequence[int]) -> list[tuple[int, int]]:
    """(better, worse) index pairs of one ranking, 1 being best; ties make no pair."""
    return [(i, j) for i, a in enumerate(ranks) for j, b in enumerate(ranks) if a < b]


STRONGEST = 3
"""Difference of levels (steps of a rating, or "much better") from which the margin is whole."""


def margin_shares(levels: Sequence[float], pairs: Sequence[tuple[int, int]]) -> list[float]:
    """Share of the margin that each (better, worse) pair asks for: 0, 1/3, 2/3 or 1 by the strength of the
    preference (the small margins of Touvron et al. 2023, arXiv:2307.09288, Table 27); 0 where a level is not
    known, or says the opposite of the ranks."""
    shares = []
    for better, worse in pairs:
        gap = levels[better] - levels[worse]
        shares.append(min(max(gap, 0.0), STRONGEST) / STRONGEST if gap == gap else 0.0)
    return shares


def ranking_loss(
    scores_K: Tensor,
    ranks: Sequence[int],
    margin: float = 0.0,
    label_smoothing: float = 0.0,
    levels: Sequence[float] | None = None,
) -> Tensor:
    """Loss of one prompt with K ranked responses: mean over its non-tied pairs of -log
    sigmoid(better - worse).

    Ouyang et al. 2022 (arXiv:2203.02155), Eq. 1; ties are dropped (C.2), and a prompt with
    nothing but ties costs 0. With a margin the scores must differ by that much for every rank
    between the two (Touvron et al. 2023, arXiv:2307.09288, Eq. 2, whose margin grows with the
    strength of the preference); with `levels`, the share of it that `margin_shares` gives. With
    label smoothing each pair is the other way round with that probability (conservative DPO,
    Mitchell 2023, ericmitchell.ai/cdpo.pdf, Eq. 5).
    """
    pairs = ranking_pairs(ranks)
    if not pairs:
        return scores_K.sum() * 0
    better = [i for i, _ in pairs]
    worse = [j for _, j in pairs]
    asked = [float(ranks[j] - ranks[i]) for i, j in pairs]
    if levels is not None:
        asked = margin_shares(levels, pairs)
    gap_P = scores_K[better] - scores_K[worse] - margin * scores_K.new_tensor(asked)
    if not label_smoothing:
        return -F.logsigmoid(gap_P).mean()
    losses_P = -F.logsigmoid(gap_P) * (1 - label_smoothing) - F.logsigmoid(-gap_P) * label_smoothing
    return losses_P.mean()


def implicit_rewards(logprobs_B: Tensor, ref_logprobs_B: Tensor, beta: float) -> Tensor:
    """(B,): beta x log(policy / reference) of each response, from the sums of its tokens' log-probabilities
    (nats). `ranking_loss` of these is the loss of DPO (Rafailov et al. 2023, Eq. 7), as the partition
    function of a prompt is the same for all its responses."""
    return beta * (logprobs_B - ref_logprobs_B)
