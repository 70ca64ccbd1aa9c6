"""The PPO task of a learner rank: `ppo_update` turns a scored batch of responses into the next
policy version.

    samples, scores, reference logprobs   from rollout and scoring actors, on every rank
        -> old logprobs, entropy, values  each rank runs its share; summed over ranks
        -> rewards, advantages, returns   the same on every rank, over the whole batch
        -> epochs x minibatches           one permutation for all; each rank runs its share

Only forward and backward passes are divided over ranks. So whitening sees the whole batch,
minibatches are the same for any number of ranks, and a metric is a metric of the batch. The
critic exists only if the advantage needs it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from learners.data.datasets import TokenData
from learners.deepspeed_engine import DeepSpeedEngine
from learners.distributed import all_reduce_sum, summed_over_ranks
from learners.forward_checks import attention_span, can_share_prompts, check_forward
from learners.models import PolicyModule, ScalarModule
from learners.rl.actor_critic import ActorCritic
from learners.rl.config import PPOConfig
from learners.rl.experience import Experience
from learners.rl.minibatches import response_micro_batches
from learners.rl.ptx import PretrainingCorpus
from learners.rl.scored_parts import ScoredPart
from learners.rl.token_stats import TokenStats
from learners.rl.update import PPOUpdate
from learners.task import Task, TaskContext


class PPOTask(Task):
    """Policy and, if there is one, critic of one rank."""

    def __init__(
        self,
        policy: PolicyModule,
        critic: ScalarModule | None,
        config: PPOConfig,
        corpus: TokenData | None,
        context: TaskContext,
    ) -> None:
        learner = context.learner
        # The learning-rate schedule is over all steps that a run can take; short batches take
        # fewer.
        steps = config.iterations * config.epochs * config.minibatches
        dtype = config.dtype
        engines = {"policy": DeepSpeedEngine(policy, learner, config.optimizer, dtype, steps)}
        if critic is not None:
            optimizer = config.critic_optimizer
            engines["critic"] = DeepSpeedEngine(critic, learner, optimizer, dtype, steps)
        # On the device, where the models are now.
        check_forward(policy, learner.packing)
        span = attention_span(policy.model) if learner.packing else None
        shares_prompts = learner.packing and can_share_prompts(policy.model)
        if critic is not None:
            check_forward(critic, learner.packing)
            span = span and min(span, attention_span(critic.model))
            shares_prompts = shares_prompts and can_share_prompts(critic.model)
        self.config = config
        self.models = ActorCritic(
            engines["policy"], engines.get("critic"), config.temperature, span, shares_prompts
        )
        self.corpus: PretrainingCorpus | None = None
        if corpus is not None:
            self.corpus = PretrainingCorpus(corpus, config.ptx_tokens, context)
        super().__init__(engines, context, config.ema)

    def ppo_update(self, version: int, kl_coef: float, parts: Sequence[ScoredPart]) -> dict[str, float]:
        """One PPO iteration on a batch; `version` is that of the weights before it. Returns
        metrics of the batch."""
        experience = Experience.from_parts(parts, self.config)
        self.compute_token_stats(experience)
        experience.compute_advantages(kl_coef, version)
        # Before the update, which changes the policy that these metrics describe.
        metrics = experience.batch_metrics()
        update = PPOUpdate(experience, self.models, self.ema, self.corpus, self.context)
        metrics |= update.run()
        if update.first_epoch is not None:
            # Only now the learner's own log-probabilities are known: replace what the engine's
            # gave.
            stats = self._summed_over_ranks(update.first_epoch)
            experience.old_logprobs_BT, experience.entropy_BT = stats.logprobs_BT, stats.entropy_BT
            metrics |= experience.mismatch_metrics()
            metrics["objective/entropy"] = experience.mean_entropy()
        return metrics

    def compute_token_stats(self, experience: Experience) -> None:
        """Sets the log-probabilities, entropy and values of an experience by the models before
        the update.

        Where `config.passes_before_update` does not hold, the policy has no forward pass here: its
        part comes from the first epoch.
        """
        runs_policy = self.config.passes_before_update
        runs_critic = self.models.critic is not None
        if not runs_policy and not runs_critic:
            return
        samples = experience.samples
        stats = TokenStats.zeros(experience.response_mask_BT)
        last_values_B = torch.zeros(samples.size)
        with torch.no_grad():
            for micro in response_micro_batches(
                samples, range(samples.size), self.context, self.models.span, self.models.shares_prompts
            ):
                if runs_policy:
                    logprobs_N, entropy_N = self.models.logprobs(micro.packed, with_entropy=True)
                    stats.record_policy(micro.indices, logprobs_N, entropy_N)
                if runs_critic:
                    values_N, last_values = self.models.values(micro.packed)
                    stats.record_values(micro.indices, values_N)
                    last_values_B[micro.indices] = last_values.float().cpu()
        stats = self._summed_over_ranks(stats)
        experience.old_logprobs_BT, experience.entropy_BT = stats.logprobs_BT, stats.entropy_BT
        experience.values_BT = stats.values_BT
        # A collective of its own, so only where these values are used.
        if self.config.bootstrap_truncated:
            experience.bootstrap_values_B = all_reduce_sum(last_values_B, self.models.device)

    def pretrain_loss(self) -> float:
        """Next-token loss on validation sequences of the pretraining corpus, in nats per token.
        PTX keeps it low."""
        if self.corpus is None:
            raise RuntimeError("this PPO task was started without the pretraining corpus")
        loss = 0.0
        with torch.no_grad():
            for text in self.corpus.micro_batches(self.corpus.heldout):
                loss += float(self.models.text_loss(text))
        return summed_over_ranks([loss])[0]

    def probe_logprobs(self, sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Log-probability of every token but the first of each sequence, float32, at temperature
        1."""
        targets = [np.arange(len(sequence)) > 0 for sequence in sequences]
        # Unpacked, like the engines, so that a difference means different weights.
        packed = self.context.pack(sequences, targets, span=None)
        with torch.no_grad():
            logprobs_N, _ = self.models.policy(packed.tokens_RT, packed.target_mask_RT)
        ends = np.cumsum([len(sequence) - 1 for sequence in sequences])
        return np.split(logprobs_N.float().cpu().numpy(), ends[:-1])

    def _summed_over_ranks(self, stats: TokenStats) -> TokenStats:
        # One collective instead of three.
        stacked = torch.stack([stats.logprobs_BT, stats.entropy_BT, stats.values_BT])
        return TokenStats(stats.mask_BT, *all_reduce_sum(stacked, self.models.device))
