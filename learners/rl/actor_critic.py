"""Policy and critic of one rank, and their forward passes over micro-batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learners.data.batching import PackedBatch
from learners.deepspeed_engine import DeepSpeedEngine
from learners.rl.minibatches import predecessor_mask
from learners.rl.ptx import TextMicroBatch


@dataclass(frozen=True)
class ActorCritic:
    """N is the number of response tokens of a micro-batch, in the order of its rows."""

    policy: DeepSpeedEngine
    critic: DeepSpeedEngine | None
    temperature: float
    """The sampling temperature, which divides the logits here too (detail 10)."""

    @property
    def device(self) -> torch.device:
        return self.policy.device

    def logprobs(self, packed: PackedBatch, with_entropy: bool) -> tuple[Tensor, Tensor]:
        """(logprobs_N, entropy_N) of the response tokens; entropy_N is empty without
        `with_entropy`."""
        return self.policy(
            packed.tokens_RT,
            packed.target_mask_RT,
            packed.positions_RT,
            temperature=self.temperature,
            with_entropy=with_entropy,
        )

    def values(self, packed: PackedBatch) -> tuple[Tensor, Tensor]:
        """(values_N, last_values_B) by the critic.

        The value of a token is the output on reading the token before, the state in which the
        token was chosen. The last value of a response is the output on reading its last token:
        the value of what would follow.
        """
        assert self.critic is not None
        # On every position, since the two kinds of value need different ones.
        scalars_RT = self.critic(packed.tokens_RT, packed.positions_RT)
        target_mask_RT = packed.target_mask_RT.to(scalars_RT.device)
        before_RT = predecessor_mask(target_mask_RT)
        return scalars_RT[before_RT], scalars_RT[target_mask_RT & ~before_RT]

    def text_loss(self, text: TextMicroBatch) -> Tensor:
        """This micro-batch's share of the mean next-token loss of a step, in nats per token."""
        logprobs_N, _ = self.policy(text.packed.tokens_RT, text.packed.target_mask_RT)
        return -logprobs_N.sum() / text.num_targets
