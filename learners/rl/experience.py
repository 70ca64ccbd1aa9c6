"""A batch of scored responses as (B, T) tensors of response tokens alone, and what one iteration
computes from it.

    scores, reference log-probabilities      from the scoring actors
    old log-probabilities, entropy, values   from the learner, before any update
        -> rewards, advantages, returns, importance weights

`learners.rl.ppo` fills one on every rank with the whole batch, so the arithmetic here sees all of
it and gives the same result for any number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from common.errors import RunStoppedError
from learners.data.episodes import EpisodeStatus, turn_ends
from learners.data.samples import Samples, concat_ranges
from learners.rl import advantages, losses
from learners.rl.config import PPOConfig
from learners.rl.episode_metrics import episode_metrics
from learners.rl.scored_parts import ScoredPart
from learners.rl.token_stats import TokenStats, scatter_tokens


class Experience:
    """B responses; column t of a (B, T) tensor is the t-th token that the policy wrote in each, 0 after
    its end. Tokens of an environment have no column, so nothing here ever sees or counts them."""

    def __init__(
        self, samples: Samples, scores_B: np.ndarray, ref_logprobs_N: np.ndarray | None, config: PPOConfig
    ) -> None:
        """`ref_logprobs_N` is None where nothing uses the reference policy."""
        self.config = config
        self.samples = samples
        self.scores_B = torch.from_numpy(scores_B)
        self.lengths_B = torch.from_numpy(samples.response_lengths_B)
        position_T = torch.arange(int(self.lengths_B.max()))
        self.response_mask_BT = position_T < self.lengths_B[:, None]
        self.loss_mask_BT = self.response_mask_BT.float()
        self.behaviour_logprobs_BT = self._response_tokens(samples.logprobs_N)
        self.ref_logprobs_BT: Tensor | None = None
        if ref_logprobs_N is not None:
            self.ref_logprobs_BT = self._response_tokens(ref_logprobs_N)

        # Set by the learner before `compute_advantages`.
        stats = TokenStats.zeros(self.response_mask_BT)
        self.old_logprobs_BT = stats.logprobs_BT
        self.entropy_BT = stats.entropy_BT
        self.values_BT = stats.values_BT
        self.bootstrap_values_B = torch.zeros(samples.size)
        """The critic's value after the last token of each response."""

        # Set by `compute_advantages`.
        self.version, self.kl_coef = 0, 0.0
        self.age_BT = torch.zeros(self.response_mask_BT.shape)
        """How many versions older than the weights before the update are those that sampled a
        token."""
        self.penalized_scores_B = self.scores_B
        self.advantages_BT = torch.zeros(self.response_mask_BT.shape)
        self.returns_BT = torch.zeros(self.response_mask_BT.shape)
        self.proximal_logprobs_BT = self.old_logprobs_BT
        self.is_weights_BT: Tensor | None = None
        """Importance-sampling weights; None for no correction."""

    @staticmethod
    def from_parts(parts: Sequence[ScoredPart], config: PPOConfig) -> Experience:
        """All responses of the parts; with dynamic sampling, those to the first `config.prompts`
        prompts whose scores differ. Raises RunStoppedError if there is no response at all."""
        samples = Samples.concat([part.samples for part in parts])
        scores_B = np.concatenate([part.scores_B for part in parts])
        references = [part.ref_logprobs_N for part in parts if part.ref_logprobs_N is not None]
        ref_logprobs_N = np.concatenate(references) if references else None
        if samples.size == 0:
            raise RunStoppedError(
                "an iteration has not a single scored response; the run's quarantine file says why each "
                "was left out"
            )
        if config.dynamic_sampling:
            kept = _with_signal(samples, scores_B, config.prompts)
            if ref_logprobs_N is not None:
                ref_logprobs_N = ref_logprobs_N[concat_ranges(samples.offsets, kept)]
            samples, scores_B = samples.select(kept), scores_B[kept]
        return Experience(samples, scores_B, ref_logprobs_N, config)

    def _response_tokens(self, flat_N: np.ndarray) -> Tensor:
        values_N = torch.from_numpy(flat_N[self.samples.response_mask_N]).float()
        return scatter_tokens(values_N, self.response_mask_BT)

    @property
    def versions_N(self) -> np.ndarray:
        """Weight version that sampled each response token."""
        return self.samples.versions_N[self.samples.response_mask_N]

    def compute_advantages(self, kl_coef: float, version: int = 0) -> None:
        """Computes advantages, returns, proximal log-probabilities and importance weights.
        `version` is that of the weights before the update.

        "Detail" is one of "The N implementation details of RLHF with PPO" (Huang, Liu, von Werra
        2023), counted through its three sections.
        """
        config, mask_BT = self.config, self.loss_mask_BT
        self.version, self.kl_coef = version, kl_coef
        if not config.passes_before_update:
            # Without a forward pass before the update, the engine's log-probabilities stand in
            # for the learner's.
            self.old_logprobs_BT = self.behaviour_logprobs_BT
            self.age_BT = scatter_tokens(
                torch.from_numpy(version - self.versions_N).float(), self.response_mask_BT
            )

        # 1. Penalties on the score: no end token (detail 14), too long (DAPO, Eq. 13).
        truncated_B = ~torch.from_numpy(self.samples.ended_B)
        self._penalize_scores(truncated_B)

        # 2. Rewards of tokens: the score on the last one, the KL penalty on each (detail 17).
        kl_coef_in_reward = 0.0
        if config.kl_in == "reward":
            kl_coef_in_reward = kl_coef
        ref_logprobs_BT = self.ref_logprobs_BT
        if ref_logprobs_BT is None:
            # Without a penalty, so what stands in its place does not matter.
            ref_logprobs_BT = self.old_logprobs_BT
        turn_rewards_BT, returns_B = self._turn_rewards()
        rewards_BT = advantages.token_rewards(
            # What the environment gave is on the turns that it was given for.
            self.penalized_scores_B - returns_B,
            self.old_logprobs_BT,
            ref_logprobs_BT,
            mask_BT,
            kl_coef_in_reward,
            config.kl_estimator,
        )
        if turn_rewards_BT is not None:
            rewards_BT = rewards_BT + turn_rewards_BT

        # 3. Whitened rewards, which keep their mean (detail 18, over the batch instead of a
        # minibatch).
        if config.whiten_rewards:
            rewards_BT = advantages.masked_whiten(rewards_BT, mask_BT, shift_mean=False)

        # 4. Advantages and returns.
        if config.advantage_spec.critic:
            self._generalized_advantages(rewards_BT, truncated_B)
        else:
            prompt_ids_B = torch.from_numpy(self.samples.prompt_ids_B)
            advantage = getattr(advantages, config.advantage)
            self.advantages_BT = advantage(rewards_BT, mask_BT, prompt_ids_B, self._gamma())

        # 5. What the policy's ratios are taken to, and what corrects for sampling by another
        # policy.
        self.proximal_logprobs_BT = self.behaviour_logprobs_BT
        if config.proximal == "recompute":
            self.proximal_logprobs_BT = self.old_logprobs_BT
        if config.passes_before_update:
            self.is_weights_BT = self._importance_weights(self.old_logprobs_BT, slice(None))

    def _turn_rewards(self) -> tuple[Tensor | None, Tensor]:
        """(rewards of the environment on the last tokens of their turns, their sum for each episode);
        (None, 0) without an environment."""
        episodes = self.samples.episodes
        if episodes is None:
            return None, torch.zeros(())
        returns_B = torch.from_numpy(episodes.returns_B(self.samples.offsets))
        return self._response_tokens(episodes.rewards_N), returns_B

    def _gamma(self) -> float | Tensor:
        """The discount from each token to the next one."""
        episodes = self.samples.episodes
        if self.config.gamma_per == "token" or episodes is None:
            return self.config.gamma
        ends_N = turn_ends(episodes.policy_mask_N, self.samples.offsets)
        return advantages.turn_discounts(self._response_tokens(ends_N), self.config.gamma)

    def _penalize_scores(self, truncated_B: Tensor) -> None:
        config = self.config
        self.penalized_scores_B = self.scores_B - config.missing_eos_penalty * truncated_B
        if config.overlong_buffer:
            overlong_B = advantages.overlong_penalty(
                self.lengths_B, config.max_response_tokens, config.overlong_buffer
            )
            self.penalized_scores_B = self.penalized_scores_B + config.overlong_penalty * overlong_B

    def _generalized_advantages(self, rewards_BT: Tensor, truncated_B: Tensor) -> None:
        """GAE (detail 15 for the discount), then whitened advantages (detail 18)."""
        config, mask_BT = self.config, self.loss_mask_BT
        bootstrap_B = None
        if config.bootstrap_truncated:
            if self.samples.episodes is not None:
                # Out of turns, though the last of them may have its end token.
                status_B = torch.from_numpy(self.samples.episodes.status_B)
                truncated_B = truncated_B | (status_B == EpisodeStatus.TRUNCATED)
            bootstrap_B = self.bootstrap_values_B * truncated_B
        advantages_BT, self.returns_BT = advantages.gae(
            rewards_BT, self.values_BT, mask_BT, self._gamma(), config.lam, bootstrap_B
        )
        self.advantages_BT = advantages.masked_whiten(advantages_BT, mask_BT)

    def batch_metrics(self) -> dict[str, float]:
        """Metrics of the batch before the update, after `compute_advantages`."""
        samples = self.samples
        metrics = {
            "objective/scores": float(self.scores_B.mean()),
            "objective/scores_std": float(self.scores_B.std(correction=0)),
            "objective/rlhf_reward": float(self.penalized_scores_B.mean()),
            "objective/entropy": self.mean_entropy(),
            "objective/responses": float(samples.size),
            "staleness/mean": float(self.version - self.versions_N.mean()),
            "staleness/max": float(self.version - self.versions_N.min()),
            "response/length": float(samples.response_lengths_B.mean()),
            "response/ended": float(samples.ended_B.mean()),
            "val/num_eos_tokens": float(samples.ended_B.sum()),
            "kl_coef": self.kl_coef,
            "tokens": float(samples.offsets[-1]),
        }
        if self.config.advantage_spec.critic:
            metrics["val/var_explained"] = self._explained_variance()
        if samples.episodes is not None:
            metrics |= episode_metrics(samples)
        return metrics | self._kl_metrics() | self.mismatch_metrics()

    def _kl_metrics(self) -> dict[str, float]:
        """KL to the reference in nats per response, and the reward with its penalty; nothing without
        the reference."""
        if self.ref_logprobs_BT is None:
            return {}
        kl_B = ((self.old_logprobs_BT - self.ref_logprobs_BT) * self.loss_mask_BT).sum(1)
        penalty_B = self.kl_coef * kl_B
        return {
            "objective/kl": float(kl_B.mean()),
            "objective/kl_max": float(kl_B.max()),
            "objective/non_score_reward": float(-self.kl_coef * kl_B.mean()),
            "objective/rlhf_reward": float((self.penalized_scores_B - penalty_B).mean()),
        }

    def proximal(self, logprobs_BT: Tensor, indices: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """(proximal log-probabilities, importance weights) of some responses, given their present
        log-probabilities."""
        device = logprobs_BT.device
        if self.config.learns_in_one_step:
            proximal_BT = logprobs_BT.detach()
            return proximal_BT, self._importance_weights(proximal_BT, indices)
        if self.config.proximal == "log_linear":
            proximal_BT = losses.log_linear_proximal(
                logprobs_BT,
                self.behaviour_logprobs_BT[indices].to(device),
                self.age_BT[indices].to(device),
            )
            return proximal_BT, self._importance_weights(proximal_BT, indices)
        is_weights_BT = self.is_weights_BT
        if is_weights_BT is not None:
            is_weights_BT = is_weights_BT[indices].to(device)
        return self.proximal_logprobs_BT[indices].to(device), is_weights_BT

    def _importance_weights(
        self, proximal_logprobs_BT: Tensor, indices: Sequence[int] | slice
    ) -> Tensor | None:
        """Importance weights of the responses at `indices`, which have these proximal
        log-probabilities."""
        device = proximal_logprobs_BT.device
        return losses.importance_weights(
            proximal_logprobs_BT,
            self.behaviour_logprobs_BT[indices].to(device),
            self.loss_mask_BT[indices].to(device),
            self.config.correction,
            self.config.correction_low,
            self.config.correction_high,
        )

    def mismatch_metrics(self) -> dict[str, float]:
        """How far the learner's log-probabilities are from the engine's."""
        metrics = losses.mismatch(
            self.old_logprobs_BT, self.behaviour_logprobs_BT, self.loss_mask_BT, self.is_weights_BT
        )
        return {f"mismatch/{name}": value for name, value in metrics.items()}

    def mean_entropy(self) -> float:
        """Mean over the response tokens, in nats."""
        return float(advantages.masked_mean(self.entropy_BT, self.loss_mask_BT))

    def _explained_variance(self) -> float:
        """Share of the variance of the returns that the critic's values explain."""
        mask_BT = self.loss_mask_BT
        mean = advantages.masked_mean(self.returns_BT, mask_BT)
        variance = advantages.masked_mean((self.returns_BT - mean) ** 2, mask_BT)
        residual = advantages.masked_mean((self.returns_BT - self.values_BT) ** 2, mask_BT)
        return float(1 - residual / variance.clamp(min=1e-8))


def _with_signal(samples: Samples, scores_B: np.ndarray, max_prompts: int) -> list[int]:
    """Indices of the responses to the first `max_prompts` prompts whose responses' scores differ;
    all indices, if no prompt has such scores."""
    prompt_ids_B = torch.from_numpy(samples.prompt_ids_B)
    has_signal_B = advantages.groups_with_signal(torch.from_numpy(scores_B), prompt_ids_B).numpy()
    # The keys of a dict are distinct and keep their order, unlike the result of np.unique.
    in_order = list(dict.fromkeys(samples.prompt_ids_B[has_signal_B].tolist()))
    if not in_order:
        return list(range(samples.size))
    is_kept_B = np.isin(samples.prompt_ids_B, in_order[:max_prompts])
    return np.flatnonzero(is_kept_B).tolist()
