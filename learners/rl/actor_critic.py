"""Policy and critic of one rank, and their forward passes over micro-batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learners.data.packing import PackedBatch
from learners.deepspeed_engine import DeepSpeedEngine
from learners.rl.ptx import TextMicroBatch


@dataclass(frozen=True)
class ActorCritic:
    """N is the number of response tokens of a micro-batch, in the order of its rows."""

    policy: DeepSpeedEngine
    critic: DeepSpeedEngine | None
    temperature: float
    """The sampling temperature, which divides the logits here too (detail 10)."""
    span: float | None = None
    """How responses stand in rows (`learners.data.batching`)."""
    shares_prompts: bool = False
    """Whether the responses to a prompt share it in a row of a forward pass."""

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
            packed.before_N,
            packed.attention_RTT,
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
        scalars_RT = self.critic(packed.tokens_RT, packed.positions_RT, packed.attention_RTT)
        scalars = scalars_RT.flatten()
        return scalars[packed.before_N.to(scalars.device)], scalars[packed.last_S.to(scalars.device)]

    def text_loss(self, text: TextMicroBatch) -> Tensor:
        """This micro-batch's share of the mean next-token loss of a step, in nats per token."""
        packed = text.packed
        logprobs_N, _ = self.policy(packed.tokens_RT, packed.target_mask_RT)
        return -logprobs_N.sum() / text.num_targets
