"""The losses of PPO and its relatives as pure functions of tensors.

No Ray, no DeepSpeed, no configuration object. B is the number of sequences, T the padded response
length; a mask is 1 on response tokens that count and 0 elsewhere. Losses are sums divided by
`denominator`, so that a caller who knows the global size gets the same gradient whatever the
sharding; without one they are means over what they see.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learners.rl.advantages import kl_estimate
from learners.rl.choices import Aggregation, Correction, RatioLevel


def aggregate(
    x_BT: Tensor, mask_BT: Tensor, aggregation: Aggregation, denominator: float | None = None
) -> Tensor:
    """One number from a quantity of tokens, divided by `aggregation_size` of these rows or by the
    one given.

    - token_mean: mean over all tokens (DAPO; PPO here).
    - seq_mean_token_mean: mean over sequences of their token means (GRPO, Shao et al. 2024, Eq. 3;
      GSPO).
    - seq_mean_token_sum: mean over sequences of their sums (RLOO).
    - fixed_length: sum over everything divided by sequences times one fixed length (Dr. GRPO, Liu
      et al. 2025).
    """
    size = aggregation_size(mask_BT, aggregation) if denominator is None else denominator
    if aggregation == "seq_mean_token_mean":
        return ((x_BT * mask_BT).sum(1) / mask_BT.sum(1).clamp(min=1)).sum() / size
    return (x_BT * mask_BT).sum() / size


def aggregation_size(mask_BT: Tensor, aggregation: Aggregation, length: int | None = None) -> float:
    """What `aggregate` divides by: tokens, sequences that have any, or sequences times `length`
    (T if not given)."""
    if aggregation == "token_mean":
        return max(1.0, float(mask_BT.sum()))
    sequences = max(1.0, float((mask_BT.sum(1) > 0).sum()))
    return sequences * (length or mask_BT.shape[1]) if aggregation == "fixed_length" else sequences


def policy_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
    weights_BT: Tensor | None = None,
    aggregation: Aggregation = "token_mean",
    ratio: RatioLevel = "token",
    denominator: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate (Schulman et al. 2017, arXiv:1707.06347, Eq. 7), negated to be minimised.

    Per token -min(r * A, clip(r, 1 - clip_low, 1 + clip_high) * A) with r = exp(new - old);
    clip_high over clip_low is DAPO's clip-higher. With `dual_clip` c > 1 it is at most -c * A
    where A < 0 (Ye et al. 2020, arXiv:1912.09729, Eq. 5). `ratio="sequence"` takes r as the
    geometric mean over the sequence (GSPO, Zheng et al. 2025, arXiv:2507.18071, Eq. 7).
    `weights_BT`, of `importance_weights`, multiplies the token's loss.

    Metrics are sums over the mask (divide by the token count): approxkl is k2 of new against old.
    """
    log_ratio_BT = (logprobs_BT - old_logprobs_BT) * mask_BT
    if ratio == "sequence":
        log_ratio_BT = (log_ratio_BT.sum(1) / mask_BT.sum(1).clamp(min=1))[:, None] * mask_BT
    # exp overflows at 89 in float32; ratios of exp(20) are clipped or masked anyway.
    ratio_BT = torch.exp(log_ratio_BT.clamp(-20, 20))
    plain_BT = -advantages_BT * ratio_BT
    clipped_BT = -advantages_BT * ratio_BT.clamp(1 - clip_low, 1 + clip_high)
    losses_BT = torch.maximum(plain_BT, clipped_BT)
    if dual_clip is not None:
        losses_BT = torch.where(
            advantages_BT < 0, torch.minimum(losses_BT, -dual_clip * advantages_BT), losses_BT
        )
    if weights_BT is not None:
        losses_BT = losses_BT * weights_BT
    # Sums, because only the caller knows the token count over all micro-batches and ranks.
    with torch.no_grad():
        metrics = {
            "approxkl": (log_ratio_BT**2).sum() / 2,
            "clipfrac": ((clipped_BT > plain_BT) * mask_BT).sum(),
            "ratio": (ratio_BT * mask_BT).sum(),
            "ratio_square": (ratio_BT**2 * mask_BT).sum(),
        }
    return aggregate(losses_BT, mask_BT, aggregation, denominator), metrics


def value_loss(
    values_BT: Tensor,
    old_values_BT: Tensor,
    returns_BT: Tensor,
    mask_BT: Tensor,
    clip: float,
    denominator: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped value loss: half the mean of max((V - R)^2, (clip(V, V_old +- clip) - R)^2)
    (Ziegler et al. 2019).

    Metrics are sums over the mask.
    """
    clipped_BT = old_values_BT + (values_BT - old_values_BT).clamp(-clip, clip)
    plain_BT, cut_BT = (values_BT - returns_BT) ** 2, (clipped_BT - returns_BT) ** 2
    loss = 0.5 * aggregate(torch.maximum(plain_BT, cut_BT), mask_BT, "token_mean", denominator)
    with torch.no_grad():
        metrics = {
            "clipfrac": ((cut_BT > plain_BT) * mask_BT).sum(),
            "square_error": (plain_BT * mask_BT).sum(),
        }
    return loss, metrics


def importance_weights(
    old_logprobs_BT: Tensor,
    behaviour_logprobs_BT: Tensor,
    mask_BT: Tensor,
    correction: Correction,
    low: float = 0.5,
    high: float = 2.0,
) -> Tensor | None:
    """Weights (B, T) for the policy loss where the engine that sampled is not the learner's
    policy; None for "none".

    With w = exp(old - behaviour) of a token, `old` by the learner before the update and
    `behaviour` by the engine:

    - tis: min(w, high), truncated importance sampling (Yao et al. 2025,
      fengyao.notion.site/off-policy-rl).
    - icepop: w where low <= w <= high, else 0 (Ling Team 2025, arXiv:2510.18855).
    - sequence: min(product of w over the response, high), the same for all its tokens.
    - decoupled: w, so that `old` is the proximal policy and the clip holds the new one near it
      (Hilton et al. 2021, arXiv:2110.00641, Eq. 5; Fu et al. 2025, arXiv:2505.24298, Eq. 4).
    """
    if correction == "none":
        return None
    log_weight_BT = (old_logprobs_BT - behaviour_logprobs_BT) * mask_BT
    if correction == "sequence":
        log_weight_BT = log_weight_BT.sum(1, keepdim=True) * mask_BT
    weight_BT = torch.exp(log_weight_BT.clamp(-20, 20))
    if correction == "icepop":
        return torch.where((weight_BT >= low) & (weight_BT <= high), weight_BT, 0.0)
    return weight_BT if correction == "decoupled" else weight_BT.clamp(max=high)


def log_linear_proximal(logprobs_BT: Tensor, behaviour_BT: Tensor, age_BT: Tensor) -> Tensor:
    """Log-probabilities (B, T) of the proximal policy without a forward pass, from the versions
    of weights alone.

    log mu + a (log pi - log mu) with a = (v_prox - v_mu) / (v_pi - v_mu), v_prox being the
    version before the update, v_pi the next one and v_mu that of the token (AReaL,
    github.com/inclusionAI/AReaL, `prox_logp_method: loglinear`): a token of the present version,
    of age 0, has the engine's own. `age_BT` is v_prox - v_mu. Carries no gradient.
    """
    return behaviour_BT + age_BT / (age_BT + 1) * (logprobs_BT.detach() - behaviour_BT)


def mismatch(
    old_logprobs_BT: Tensor, behaviour_logprobs_BT: Tensor, mask_BT: Tensor, weights_BT: Tensor | None = None
) -> dict[str, float]:
    """How far the learner's policy is from the engine's on the tokens that the engine sampled.

    - mean and max of |old - behaviour|, in nats;
    - kl, the k3 estimate of KL(behaviour || old), in nats per token;
    - ratio_max and ratio_min of w = exp(old - behaviour);
    - effective, the effective share of the tokens, (sum w)^2 / (n sum w^2);
    - weight, the mean of `importance_weights`, below 1 by what was truncated or masked.
    """
    is_response_BT = mask_BT > 0
    difference_N = (old_logprobs_BT - behaviour_logprobs_BT)[is_response_BT]
    ratio_N = difference_N.clamp(-20, 20).exp()
    metrics = {
        "mean": difference_N.abs().mean(),
        "max": difference_N.abs().max(),
        "kl": kl_estimate(-difference_N, torch.zeros_like(difference_N), "k3").mean(),
        "ratio_max": ratio_N.max(),
        "ratio_min": ratio_N.min(),
        "effective": ratio_N.sum() ** 2 / (len(ratio_N) * (ratio_N**2).sum()),
    }
    if weights_BT is not None:
        metrics["weight"] = weights_BT[is_response_BT].mean()
    return {name: float(value) for name, value in metrics.items()}
