"""From scores to advantages, and the controllers around it, as pure functions of tensors.

B is the number of responses, T the padded response length; a mask is 1 on response tokens that
count and 0 elsewhere. `learners.objectives` passes all of this on under its own name.

An advantage without critic is a function (rewards_BT, mask_BT, groups_B, gamma) -> advantages_BT:
the rewards are those of `token_rewards`, groups_B names the prompt that each response answers. A
new one is a function here and a line in `learners.rl.config.ADVANTAGES`.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from learners.rl.choices import KLEstimator

Discount: TypeAlias = float | Tensor
"""For all tokens, or (B, T): from each token to the next."""


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x where mask is 1 (scalar); 0 where nothing is."""
    return (x * mask).sum() / mask.sum().clamp(min=1)


def masked_whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """x scaled to unit variance over the mask; the mean is kept when shift_mean is False.

    Biased variance and 1e-8 inside the root, as in the summarization code of Ziegler et al. 2019
    (arXiv:1909.08593).
    """
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    whitened = (x - mean) * torch.rsqrt(variance + 1e-8)
    return whitened if shift_mean else whitened + mean


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: KLEstimator = "k1") -> Tensor:
    """Per-token estimate of KL(policy || reference) in nats, from tokens sampled by the policy;
    any shape.

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

    r_t = -kl_coef * kl_t + [t = last] * score (Ziegler et al. 2019; Stiennon et al. 2020, section
    3.4). A row without response tokens gets no reward.
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
    gamma: Discount,
    lam: float,
    bootstrap_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation (Schulman et al. 2015, arXiv:1506.02438): (advantages_BT,
    returns_BT).

    delta_t = r_t + gamma * V_{t+1} - V_t, A_t = delta_t + gamma * lam * A_{t+1}, return_t = A_t +
    V_t, where t + 1 is the next token with mask 1: tokens of a tool or environment are skipped,
    not decayed through. `gamma` may be (B, T), the discount from each token to the next.
    `bootstrap_B` is the value after the last token of a response that was cut; 0 (the default)
    where it ended.
    """
    next_value_B = (
        torch.zeros_like(rewards_BT[:, 0]) if bootstrap_B is None else bootstrap_B.to(rewards_BT.dtype)
    )
    advantage_B = torch.zeros_like(next_value_B)
    advantages_BT = torch.zeros_like(rewards_BT)
    # Backwards, since each token needs the value and advantage of the next one that counts.
    for t in reversed(range(rewards_BT.shape[1])):
        counts_B = mask_BT[:, t] > 0
        discount = gamma[:, t] if isinstance(gamma, Tensor) else gamma
        delta_B = rewards_BT[:, t] + discount * next_value_B - values_BT[:, t]
        advantage_B = torch.where(counts_B, delta_B + discount * lam * advantage_B, advantage_B)
        next_value_B = torch.where(counts_B, values_BT[:, t], next_value_B)
        advantages_BT[:, t] = torch.where(counts_B, advantage_B, torch.zeros_like(advantage_B))
    return advantages_BT, (advantages_BT + values_BT) * (mask_BT > 0)


def turn_discounts(turn_ends_BT: Tensor, gamma: float) -> Tensor:
    """(B, T) discounts that count turns instead of tokens: gamma from the last token of a turn to the next
    turn, 1 inside a turn, where nothing happens between two tokens but writing."""
    return torch.where(turn_ends_BT > 0, gamma, 1.0)


def reinforce(rewards_BT: Tensor, mask_BT: Tensor, groups_B: Tensor, gamma: Discount) -> Tensor:
    """Plain REINFORCE (Williams 1992): the discounted sum of the rewards from each token on,
    without a baseline."""
    # GAE with lambda 1 and without values is that sum.
    return gae(rewards_BT, torch.zeros_like(rewards_BT), mask_BT, gamma, 1.0)[0]


def reinforce_pp(rewards_BT: Tensor, mask_BT: Tensor, groups_B: Tensor, gamma: Discount) -> Tensor:
    """REINFORCE++ (Hu 2025, arXiv:2501.03262): REINFORCE whitened over the whole batch."""
    return masked_whiten(reinforce(rewards_BT, mask_BT, groups_B, gamma), mask_BT) * mask_BT


def reinforce_pp_baseline(rewards_BT: Tensor, mask_BT: Tensor, groups_B: Tensor, gamma: Discount) -> Tensor:
    """REINFORCE++ with baseline (Hu 2025): return minus the mean of its group, whitened over the
    whole batch."""
    return masked_whiten(dr_grpo(rewards_BT, mask_BT, groups_B, gamma), mask_BT) * mask_BT


def grpo(rewards_BT: Tensor, mask_BT: Tensor, groups_B: Tensor, gamma: Discount) -> Tensor:
    """GRPO (Shao et al. 2024, arXiv:2402.03300): (return - mean of its group) / standard
    deviation of its group.

    Unbiased deviation and 1e-6 in the denominator, as in the published implementations; the paper
    has the KL in the loss (`ppo.kl_in: loss`). 0 in a group of one.
    """
    returns_B = rewards_BT.sum(1)
    centred_B, sizes_B = _centred(returns_B, groups_B)
    deviation_B = (_group_sums(centred_B**2, groups_B) / (sizes_B - 1).clamp(min=1)).sqrt()
    return (centred_B / (deviation_B + 1e-6))[:, None] * mask_BT


def dr_grpo(rewards_BT: Tensor, mask_BT: Tensor, groups_B: Tensor, gamma: Discount) -> Tensor:
    """Dr. GRPO (Liu et al. 2025, arXiv:2503.20783): return minus the mean of its group, not
    scaled; goes with `aggregation: fixed_length`, which the paper has instead of a mean over the
    tokens of each response."""
    return _centred(rewards_BT.sum(1), groups_B)[0][:, None] * mask_BT


def rloo(rewards_BT: Tensor, mask_BT: Tensor, groups_B: Tensor, gamma: Discount) -> Tensor:
    """RLOO (Ahmadian et al. 2024, arXiv:2402.14740): return minus the mean of the others of its
    group, which is n / (n - 1) times the distance from the mean of all n. 0 in a group of one."""
    centred_B, sizes_B = _centred(rewards_BT.sum(1), groups_B)
    return (centred_B * sizes_B / (sizes_B - 1).clamp(min=1))[:, None] * mask_BT


def _group_sums(x_B: Tensor, groups_B: Tensor) -> Tensor:
    """For each response, the sum of x over its group."""
    _, index_B = groups_B.unique(return_inverse=True)
    return torch.zeros_like(x_B).index_add(0, index_B, x_B)[index_B]


def _centred(x_B: Tensor, groups_B: Tensor) -> tuple[Tensor, Tensor]:
    """(x minus the mean of its group, size of its group)."""
    sizes_B = _group_sums(torch.ones_like(x_B), groups_B)
    return x_B - _group_sums(x_B, groups_B) / sizes_B, sizes_B


def groups_with_signal(scores_B: Tensor, groups_B: Tensor) -> Tensor:
    """bool (B,): whether the scores of a response's group differ; else no group baseline learns
    from it.

    DAPO's dynamic sampling (Yu et al. 2025, arXiv:2503.14476, section 3.2) samples until enough
    groups do.
    """
    _, index_B = groups_B.unique(return_inverse=True)
    # Highest and lowest instead of the variance, which rounding keeps from being exactly 0.
    highest_B = torch.full_like(scores_B, -torch.inf).scatter_reduce(0, index_B, scores_B, "amax")
    lowest_B = torch.full_like(scores_B, torch.inf).scatter_reduce(0, index_B, scores_B, "amin")
    return (highest_B > lowest_B)[index_B]


def overlong_penalty(lengths_B: Tensor, longest: int, buffer: int) -> Tensor:
    """(B,) in [-1, 0]: 0 up to longest - buffer tokens, from there falling linearly to -1 at
    `longest`.

    DAPO's soft overlong punishment (Yu et al. 2025, Eq. 13).
    """
    return ((longest - buffer - lengths_B) / buffer).clamp(-1, 0)


def adapted_kl_coef(kl_coef: float, kl: float, target: float, horizon: int, samples: int) -> float:
    """The KL coefficient after a batch of `samples` responses whose mean KL was `kl` nats.

    coef * (1 + clip(kl / target - 1, -0.2, 0.2) * samples / horizon) (Ziegler et al. 2019,
    section 2.2).
    """
    return kl_coef * (1 + min(max(kl / target - 1, -0.2), 0.2) * samples / horizon)
