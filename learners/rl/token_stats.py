"""What the learner's models compute for the response tokens of a batch, as (B, T) tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class TokenStats:
    """What the learner's models compute for each response token, float32; 0 after the end of a
    response.

    A rank fills in the responses that it runs and leaves the others at 0, so that the sum over
    ranks is complete.
    """

    mask_BT: Tensor
    """bool. The response tokens."""
    logprobs_BT: Tensor
    """Natural log, at the sampling temperature."""
    entropy_BT: Tensor
    """Nats, of the distribution that the token was drawn from."""
    values_BT: Tensor
    """The critic's output on reading the token before, which is the state in which the token was
    chosen."""

    @staticmethod
    def zeros(mask_BT: Tensor) -> TokenStats:
        return TokenStats(mask_BT, *torch.zeros(3, *mask_BT.shape))

    def record_policy(self, indices: list[int], logprobs_N: Tensor, entropy_N: Tensor) -> None:
        """Sets what the policy computes for the tokens of the responses at `indices`."""
        mask_BT = self.mask_BT[indices]
        self.logprobs_BT[indices] = scatter_tokens(logprobs_N.detach().float().cpu(), mask_BT)
        self.entropy_BT[indices] = scatter_tokens(entropy_N.detach().float().cpu(), mask_BT)

    def record_values(self, indices: list[int], values_N: Tensor) -> None:
        """Sets the critic's values of the tokens of the responses at `indices`."""
        values_N = values_N.detach().float().cpu()
        self.values_BT[indices] = scatter_tokens(values_N, self.mask_BT[indices])


def scatter_tokens(values_N: Tensor, mask_BT: Tensor) -> Tensor:
    """(B, T) with the values of the tokens in a bool mask, in the mask's row-major order, and 0
    elsewhere."""
    scattered_BT = values_N.new_zeros(mask_BT.shape)
    scattered_BT[mask_BT] = values_N
    return scattered_BT
