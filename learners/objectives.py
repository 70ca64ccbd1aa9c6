"""The objectives of the whole pipeline as pure functions of tensors.

No Ray, no DeepSpeed, no configuration object: everything a reader must trust about the learning is here and is
tested against hand-computed values. B is the number of sequences, T the padded response length; a mask is 1 on
response tokens that count and 0 elsewhere. Losses are sums divided by `denominator`, so that a caller who knows
the global count gets the same gradient whatever the sharding; without one they are means over what they see.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3"]


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x where mask is 1 (scalar); 0 where nothing is."""
    return (x * mask).sum() / mask.sum().clamp(min=1)


def masked_whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """x scaled to unit variance over the mask; the mean is kept when shift_mean is False.

    Biased variance and 1e-8 inside the root, as in the summarization code of Ziegler et al. 2019 (arXiv:1909.08593).
    """
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    whitened = (x - mean) * torch.rsqrt(variance + 1e-8)
    return whitened if shift_mean else whitened + mean


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: KLEstimator = "k1") -> Tensor:
    """Per-token estimate of KL(policy || reference) in nats, from tokens sampled by the policy; any shape.

    With d = logprobs - ref_logprobs: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d
    (Schulman, joschu.net/blog/kl-approx.html).
    """
    d = logprobs - ref_logprobs
    if estimator == "k1":
        return d
    if estimator == "k2":
        return d**2 / 2
    return torch.exp(-d) - 1 + d


def token_rewards(
    scores_B: Tensor,
    logprobs_BT: Tensor,
    ref_logprobs_BT: Tensor,
    mask_BT: Tensor,
    kl_coef: float,
    estimator: KLEstimator = "k1",
) -> Tensor:
    """(B, T) rewards: minus the KL penalty on every response token, plus the score on the last one.

    r_t = -kl_coef * kl_t + [t = last] * score (Ziegler et al. 2019; Stiennon et al. 2020, section 3.4).
    A row without response tokens gets no reward.
    """
    rewards_BT = -kl_coef * kl_estimate(logprobs_BT, ref_logprobs_BT, estimator) * mask_BT
    position_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    last_B = (mask_BT * (position_T + 1)).argmax(dim=1)
    is_last_BT = (position_T == last_B[:, None]) * (mask_BT > 0)
    return rewards_BT + is_last_BT * scores_B[:, None]


def gae(
    rewards_BT: Tensor,
    values_BT: Tensor,
    mask_BT: Tensor,
    gamma: float,
    lam: float,
    bootstrap_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation (Schulman et al. 2015, arXiv:1506.02438): (advantages_BT, returns_BT).

    delta_t = r_t + gamma * V_{t+1} - V_t, A_t = delta_t + gamma * lam * A_{t+1}, return_t = A_t + V_t, where t + 1 is
    the next token with mask 1: tokens of a tool or environment are skipped, not decayed through. `bootstrap_B` is
    the value after the last token of a response that was cut; 0 (the default) where it ended.
    """
    length = rewards_BT.shape[1]
    next_value_B = torch.zeros_like(rewards_BT[:, 0]) if bootstrap_B is None else bootstrap_B.to(rewards_BT.dtype)
    advantage_B = torch.zeros_like(next_value_B)
    advantages_BT = torch.zeros_like(rewards_BT)
    for t in reversed(range(length)):
        on_B = mask_BT[:, t] > 0
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        advantage_B = torch.where(on_B, delta_B + gamma * lam * advantage_B, advantage_B)
        next_value_B = torch.where(on_B, values_BT[:, t], next_value_B)
        advantages_BT[:, t] = torch.where(on_B, advantage_B, torch.zeros_like(advantage_B))
    return advantages_BT, (advantages_BT + values_BT) * (mask_BT > 0)


def policy_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    clip_low: float,
    clip_high: float,
    denominator: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate (Schulman et al. 2017, arXiv:1707.06347, Eq. 7), negated to be minimised.

    Mean over tokens of -min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A), ratio = exp(new - old).
    Metrics are sums over the mask (divide by the token count): approxkl is k2 of new against old.
    """
    log_ratio_BT = (logprobs_BT - old_logprobs_BT) * mask_BT
    ratio_BT = torch.exp(log_ratio_BT)
    clipped_BT = ratio_BT.clamp(1 - clip_low, 1 + clip_high)
    losses_BT = torch.maximum(-advantages_BT * ratio_BT, -advantages_BT * clipped_BT)
    loss = (losses_BT * mask_BT).sum() / (mask_BT.sum().clamp(min=1) if denominator is None else denominator)
    with torch.no_grad():
        metrics = {
            "approxkl": (log_ratio_BT**2).sum() / 2,
            "clipfrac": ((-advantages_BT * clipped_BT > -advantages_BT * ratio_BT) * mask_BT).sum(),
            "ratio": (ratio_BT * mask_BT).sum(),
            "ratio_square": (ratio_BT**2 * mask_BT).sum(),
        }
    return loss, metrics


def value_loss(
    values_BT: Tensor,
    old_values_BT: Tensor,
    returns_BT: Tensor,
    mask_BT: Tensor,
    clip: float,
    denominator: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped value loss: half the mean of max((V - R)^2, (clip(V, V_old +- clip) - R)^2) (Ziegler et al. 2019).

    Metrics are sums over the mask.
    """
    clipped_BT = old_values_BT + (values_BT - old_values_BT).clamp(-clip, clip)
    plain_BT, cut_BT = (values_BT - returns_BT) ** 2, (clipped_BT - returns_BT) ** 2
    loss = 0.5 * (torch.maximum(plain_BT, cut_BT) * mask_BT).sum()
    loss = loss / (mask_BT.sum().clamp(min=1) if denominator is None else denominator)
    with torch.no_grad():
        metrics = {"clipfrac": ((cut_BT > plain_BT) * mask_BT).sum(), "square_error": (plain_BT * mask_BT).sum()}
    return loss, metrics


def ranking_pairs(ranks: list[int]) -> list[tuple[int, int]]:
    """(better, worse) index pairs of one ranking, 1 being best; ties make no pair."""
    return [(i, j) for i, a in enumerate(ranks) for j, b in enumerate(ranks) if a < b]


def ranking_loss(scores_K: Tensor, ranks: list[int]) -> Tensor:
    """Loss of one prompt with K ranked responses: mean over its non-tied pairs of -log sigmoid(better - worse).

    Ouyang et al. 2022 (arXiv:2203.02155), Eq. 1; ties are dropped (C.2), and a prompt with nothing but ties costs 0.
    """
    pairs = ranking_pairs(ranks)
    if not pairs:
        return scores_K.sum() * 0
    better, worse = (torch.tensor(side, device=scores_K.device) for side in zip(*pairs, strict=True))
    return -F.logsigmoid(scores_K[better] - scores_K[worse]).mean()


def token_logprobs(
    logits_NV: Tensor, targets_N: Tensor, temperature: float = 1.0, with_entropy: bool = False
) -> tuple[Tensor, Tensor]:
    """(logprobs_N, entropy_N) in nats of the targets under softmax(logits / temperature), in float32.

    The entropy carries no gradient and is empty unless asked for.
    """
    log_p_NV = F.log_softmax(logits_NV.float() / temperature, dim=-1)
    logprobs_N = log_p_NV.gather(-1, targets_N[:, None]).squeeze(-1)
    if not with_entropy:
        return logprobs_N, logprobs_N.new_empty(0)
    with torch.no_grad():
        entropy_N = -(log_p_NV.exp() * log_p_NV).sum(-1)
    return logprobs_N, entropy_N
