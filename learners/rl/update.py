"""The optimizer steps of one PPO iteration: epochs x minibatches, each a step of the policy and
one of the critic.

"Detail" is one of "The N implementation details of RLHF with PPO" (Huang, Liu, von Werra 2023),
counted through its three sections.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from learners.deepspeed_engine import EMA
from learners.distributed import MetricSums
from learners.rl import advantages, losses
from learners.rl.actor_critic import ActorCritic
from learners.rl.config import PPOConfig
from learners.rl.experience import Experience
from learners.rl.minibatches import (
    MicroBatch,
    Minibatch,
    minibatch_indices,
    response_micro_batches,
)
from learners.rl.ptx import PretrainingCorpus
from learners.rl.token_stats import TokenStats, scatter_tokens
from learners.task import TaskContext

# Names under which the sums of `losses.policy_loss` are logged.
POLICY_METRICS = {
    "approxkl": "policy/approxkl_avg",
    "clipfrac": "policy/clipfrac_avg",
    "ratio": "val/ratio",
    "ratio_square": "val/ratio_square",
}


class PPOUpdate:
    """The steps on one batch, and the metrics that they add up. Metrics are means over response
    tokens of all epochs."""

    def __init__(
        self,
        experience: Experience,
        models: ActorCritic,
        ema: EMA | None,
        corpus: PretrainingCorpus | None,
        context: TaskContext,
    ) -> None:
        self.experience, self.models, self.ema, self.context = experience, models, ema, context
        self.config: PPOConfig = experience.config
        self.ptx_corpus: PretrainingCorpus | None = None
        if self.config.ptx_coef:
            self.ptx_corpus = corpus
        self.first_epoch: TokenStats | None = None
        """Without a forward pass before the update: what those of the first epoch say of
        each token."""
        if not self.config.passes_before_update:
            self.first_epoch = TokenStats.zeros(experience.response_mask_BT)
        self.sums = MetricSums()
        self.steps = 0
        self.num_tokens = 0.0
        self.first_ratio_error = 0.0
        self.lr = 0.0

    def run(self) -> dict[str, float]:
        """All epochs; returns the metrics."""
        config, prompt_ids_B = self.config, self.experience.samples.prompt_ids_B
        for epoch in range(config.epochs):
            batches = minibatch_indices(
                self.context.seed, self.experience.version, epoch, prompt_ids_B, config.minibatches
            )
            for indices in batches:
                minibatch = self._minibatch(indices.tolist())
                self._policy_step(minibatch, is_first_epoch=epoch == 0)
                if self.models.critic is not None:
                    self._critic_step(minibatch)
                self.num_tokens += minibatch.num_tokens
                self.steps += 1
        return self._metrics()

    def _minibatch(self, indices: list[int]) -> Minibatch:
        config, loss_mask_BT = self.config, self.experience.loss_mask_BT[indices]
        return Minibatch(
            response_micro_batches(
                self.experience.samples, indices, self.context, self.models.span, self.models.shares_prompts
            ),
            num_tokens=float(loss_mask_BT.sum()),
            loss_size=losses.aggregation_size(loss_mask_BT, config.aggregation, config.max_response_tokens),
        )

    def _policy_step(self, minibatch: Minibatch, is_first_epoch: bool) -> None:
        texts = []
        if self.ptx_corpus is not None:
            sequences = self.ptx_corpus.ptx_sequences(self.experience.version, self.steps)
            texts = self.ptx_corpus.micro_batches(sequences)
        # DeepSpeed must know the last backward pass of a step, whichever loss it belongs to.
        remaining = len(minibatch.micro_batches) + len(texts)
        for micro in minibatch.micro_batches:
            remaining -= 1
            loss = self._policy_loss(minibatch, micro, is_first_epoch)
            self.models.policy.backward(loss, last=remaining == 0)
        for text in texts:
            remaining -= 1
            loss = self.models.text_loss(text)
            self.models.policy.backward(self.config.ptx_coef * loss, last=remaining == 0)
            self.sums.add({"loss/ptx": loss * minibatch.num_tokens})
        step = self.models.policy.step()
        self.lr = step["lr"]
        # The norm is the same on every rank and the sums are added over ranks.
        grad_norm = step["grad_norm"] * minibatch.num_tokens / self.context.ranks
        self.sums.add({"grad_norm/policy": grad_norm})
        if self.ema is not None:
            self.ema.update()

    def _policy_loss(self, minibatch: Minibatch, micro: MicroBatch, is_first_epoch: bool) -> Tensor:
        """This micro-batch's share of the policy's loss."""
        config, experience = self.config, self.experience
        stats: TokenStats | None = None
        if is_first_epoch:
            stats = self.first_epoch
        logprobs_N, entropy_N = self.models.logprobs(micro.packed, with_entropy=stats is not None)
        if stats is not None:
            stats.record_policy(micro.indices, logprobs_N, entropy_N)
        logprobs_BT = self._scattered(logprobs_N, micro)
        proximal_BT, is_weights_BT = experience.proximal(logprobs_BT, micro.indices)
        loss_mask_BT = self._rows(experience.loss_mask_BT, micro)
        loss, metrics = losses.policy_loss(
            logprobs_BT,
            proximal_BT,
            self._rows(experience.advantages_BT, micro),
            loss_mask_BT,
            config.clip_low,
            config.clip_high,
            config.dual_clip,
            is_weights_BT,
            config.aggregation,
            config.ratio,
            minibatch.loss_size,
        )
        # Weighted by tokens, so that the mean over minibatches is a mean over tokens.
        self.sums.add({"loss/policy_avg": loss * minibatch.num_tokens})
        self.sums.add({"packed_tokens": micro.packed.num_tokens})
        self.sums.add({"padded_tokens": micro.packed.tokens_RT.numel()})
        self.sums.add({POLICY_METRICS[name]: value for name, value in metrics.items()})
        if self.steps == 0:
            self._check_first_ratio(logprobs_BT.detach(), micro)
        if config.kl_in == "loss":
            # GRPO's paper has the penalty here, as k3, and not in the reward.
            assert experience.ref_logprobs_BT is not None  # kl_in needs kl_coef over 0
            ref_logprobs_BT = self._rows(experience.ref_logprobs_BT, micro)
            kl_BT = advantages.kl_estimate(logprobs_BT, ref_logprobs_BT, config.kl_estimator)
            kl = losses.aggregate(kl_BT, loss_mask_BT, config.aggregation, minibatch.loss_size)
            penalty = experience.kl_coef * kl
            self.sums.add({"loss/kl": penalty * minibatch.num_tokens})
            loss = loss + penalty
        return loss

    def _check_first_ratio(self, logprobs_BT: Tensor, micro: MicroBatch) -> None:
        """Before the first step the policy is the old one, so another ratio than 1 means that a
        forward pass here and the one before the update differ."""
        if micro.indices:
            old_logprobs_BT = self._rows(self.experience.old_logprobs_BT, micro)
            error = float(((logprobs_BT - old_logprobs_BT).exp() - 1).abs().max())
            self.first_ratio_error = max(self.first_ratio_error, error)

    def _critic_step(self, minibatch: Minibatch) -> None:
        critic, experience = self.models.critic, self.experience
        assert critic is not None
        for i, micro in enumerate(minibatch.micro_batches):
            values_N, _ = self.models.values(micro.packed)
            loss, metrics = losses.value_loss(
                self._scattered(values_N, micro),
                self._rows(experience.values_BT, micro),
                self._rows(experience.returns_BT, micro),
                self._rows(experience.loss_mask_BT, micro),
                self.config.value_clip,
                denominator=minibatch.num_tokens,
            )
            critic.backward(loss, last=i == len(minibatch.micro_batches) - 1)
            self.sums.add({"loss/value_avg": loss * minibatch.num_tokens})
            self.sums.add({"val/clipfrac_avg": metrics["clipfrac"]})
            self.sums.add({"val/square_error": metrics["square_error"]})
        grad_norm = critic.step()["grad_norm"] * minibatch.num_tokens / self.context.ranks
        self.sums.add({"grad_norm/critic": grad_norm})

    def _metrics(self) -> dict[str, float]:
        means = self.sums.means(self.num_tokens)
        first_ratio_error = torch.tensor(self.first_ratio_error, device=self.models.device)
        dist.all_reduce(first_ratio_error, op=dist.ReduceOp.MAX)
        padding = 1 - means.pop("packed_tokens") / means.pop("padded_tokens")
        # Rounding can make the difference of two equal means slightly negative.
        ratio_var = max(0.0, means.pop("val/ratio_square") - means["val/ratio"] ** 2)
        metrics = {
            **means,
            "val/ratio_var": ratio_var,
            "val/first_ratio_error": float(first_ratio_error),
            "batch/padding": padding,
            "lr": self.lr,
        }
        if self.models.critic is not None:
            metrics["val/error"] = metrics.pop("val/square_error") ** 0.5
        return metrics

    def _rows(self, values_BT: Tensor, micro: MicroBatch) -> Tensor:
        """The rows of a micro-batch's responses, on the models' device."""
        return values_BT[micro.indices].to(self.models.device)

    def _scattered(self, values_N: Tensor, micro: MicroBatch) -> Tensor:
        """(B, T) from the values of a micro-batch's response tokens."""
        return scatter_tokens(values_N, self._rows(self.experience.response_mask_BT, micro))
