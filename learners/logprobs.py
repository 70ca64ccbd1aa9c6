"""Log-probabilities and entropy of target tokens from logits: a pure function that models and
objectives share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def token_logprobs(
    logits_NV: Tensor, targets_N: Tensor, temperature: float = 1.0, with_entropy: bool = False
) -> tuple[Tensor, Tensor]:
    """(logprobs_N, entropy_N) in nats of the targets under softmax(logits / temperature), in
    float32.

    The entropy carries no gradient and is empty without `with_entropy`.
    """
    # float32, because bfloat16 resolves a log-probability of -10 to 0.06 only.
    log_p_NV = F.log_softmax(logits_NV.float() / temperature, dim=-1)
    logprobs_N = log_p_NV.gather(-1, targets_N[:, None]).squeeze(-1)
    if not with_entropy:
        return logprobs_N, logprobs_N.new_empty(0)
    with torch.no_grad():
        entropy_N = -(log_p_NV.exp() * log_p_NV).sum(-1)
    return logprobs_N, entropy_N
