"""A batch of scored responses as (B, T) tensors of response tokens alone, and what one iteration makes of it.

    scores, reference logprobs      from the scoring actors
    old logprobs, entropy, values   from the learner, before any update
        -> rewards, advantages, returns, importance weights

`learners.rl.ppo` fills one on every rank with the whole batch, so the arithmetic here sees all of it and is the same for
any number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from learners.data.samples import Samples
from learners.rl import advantages, losses
from learners.rl.config import PPOConfig


class Experience:
    """B responses; column t of a (B, T) tensor is the t-th token of each response, 0 after its end."""

    def __init__(self, samples: Samples, scores_B: np.ndarray, ref_N: np.ndarray) -> None:
        self.samples = samples
        self.scores_B, self.lengths_B = (
            torch.from_numpy(scores_B),
            torch.from_numpy(samples.response_lengths_B),
        )
        self.on_BT = torch.arange(int(self.lengths_B.max())) < self.lengths_B[:, None]
        self.mask_BT = self.on_BT.float()
        self.behaviour_BT, self.ref_BT = self._padded(samples.logprobs_N), self._padded(ref_N)
        self.old_BT, self.entropy_BT, self.values_BT = torch.zeros(3, *self.on_BT.shape)
        self.advantages_BT, self.returns_BT = torch.zeros(2, *self.on_BT.shape)
        self.after_B = torch.zeros(samples.size)
        """The critic's value on reading the last token of each response."""
        self.proximal_BT = self.old_BT
        self.age_BT = torch.zeros(self.on_BT.shape)
        """Versions that the weights which wrote a token are behind those before the update."""
        self.weights_BT: Tensor | None = None

    @staticmethod
    def gather(batch: Sequence[Any], parts: int, config: PPOConfig) -> Experience:
        """From `parts` Samples and as many (scores_B, ref_logprobs_N) after them; with dynamic sampling, the first
        `config.prompts` groups whose scores differ (all responses if there is none)."""
        samples = Samples.concat(batch[:parts])
        scores_B = np.concatenate([scored[0] for scored in batch[parts:]])
        ref_N = np.concatenate([scored[1] for scored in batch[parts:]])
        if samples.size == 0:
            raise UserError(
                "an iteration without a single scored response; see what became of them in the run directory"
            )
        if config.dynamic_sampling:
            ids = torch.from_numpy(samples.prompt_ids_B)
            useful = ids[advantages.groups_with_signal(torch.from_numpy(scores_B), ids)].numpy()
            wanted = useful[np.sort(np.unique(useful, return_index=True)[1])][: config.prompts]
            kept = np.flatnonzero(
                np.isin(samples.prompt_ids_B, wanted if len(wanted) else samples.prompt_ids_B)
            )
            ref_N = ref_N[np.repeat(np.isin(np.arange(samples.size), kept), samples.lengths_B)]
            samples, scores_B = samples.select(kept.tolist()), scores_B[kept]
        return Experience(samples, scores_B, ref_N)

    def _padded(self, flat_N: np.ndarray) -> Tensor:
        return self.spread(torch.from_numpy(flat_N[self.samples.response_mask_N]).float(), self.on_BT)

    @staticmethod
    def spread(values_N: Tensor, on_BT: Tensor) -> Tensor:
        """(B, T) with the values of response tokens, given one response after the other, and 0 elsewhere."""
        spread_BT = values_N.new_zeros(on_BT.shape)
        spread_BT[on_BT] = values_N
        return spread_BT

    @property
    def versions_N(self) -> np.ndarray:
        """Weight version of each response token."""
        return self.samples.versions_N[self.samples.response_mask_N]

    def shape(self, config: PPOConfig, kl_coef: float, version: int = 0) -> dict[str, float]:
        """Fills in advantages, returns, proximal log-probabilities and weights; returns the metrics of the batch. `version`
        is that of the weights before the update."""
        mask_BT, samples = self.mask_BT, self.samples
        if config.proximal == "log_linear":
            self.old_BT = self.behaviour_BT  # until the first epoch has shown the learner's
            self.age_BT = self.spread(torch.from_numpy(version - self.versions_N).float(), self.on_BT)
        old_BT = self.old_BT
        cut_B = ~torch.from_numpy(samples.ended_B)
        given_B = self.scores_B - config.missing_eos_penalty * cut_B
        if config.overlong_buffer:
            over_B = advantages.overlong_penalty(
                self.lengths_B, config.max_response_tokens, config.overlong_buffer
            )
            given_B = given_B + config.overlong_penalty * over_B
        inside = kl_coef if config.kl_in == "reward" else 0.0
        rewards_BT = advantages.token_rewards(
            given_B, old_BT, self.ref_BT, mask_BT, inside, config.kl_estimator
        )
        if config.whiten_rewards:
            rewards_BT = advantages.masked_whiten(rewards_BT, mask_BT, shift_mean=False)
        if config.advantage_spec.critic:
            after_B = self.after_B * cut_B if config.bootstrap_truncated else None
            found_BT, self.returns_BT = advantages.gae(
                rewards_BT, self.values_BT, mask_BT, config.gamma, config.lam, after_B
            )
            self.advantages_BT = advantages.masked_whiten(found_BT, mask_BT)
        else:
            groups_B = torch.from_numpy(samples.prompt_ids_B)
            advantage = getattr(advantages, config.advantage)
            self.advantages_BT = advantage(rewards_BT, mask_BT, groups_B, config.gamma)
        self.proximal_BT = old_BT if config.proximal == "recompute" else self.behaviour_BT
        self.weights_BT = None if config.proximal == "log_linear" else self.correction(old_BT, config)
        kl_B = ((old_BT - self.ref_BT) * mask_BT).sum(1)
        return {
            "objective/scores": float(self.scores_B.mean()),
            "objective/scores_std": float(self.scores_B.std(correction=0)),
            "objective/kl": float(kl_B.mean()),
            "objective/kl_max": float(kl_B.max()),
            "objective/non_score_reward": float(-kl_coef * kl_B.mean()),
            "objective/rlhf_reward": float((given_B - kl_coef * kl_B).mean()),
            "objective/entropy": self.entropy(),
            "objective/responses": float(samples.size),
            "staleness/mean": float(version - self.versions_N.mean()),
            "staleness/max": float(version - self.versions_N.min()),
            "response/length": float(samples.response_lengths_B.mean()),
            "response/ended": float(samples.ended_B.mean()),
            "val/num_eos_tokens": float(samples.ended_B.sum()),
            **({"val/var_explained": self._explained()} if config.advantage_spec.critic else {}),
            **self.mismatch(),
            "kl_coef": kl_coef,
            "tokens": float(samples.offsets[-1]),
        }

    def proximal(
        self, logprobs_BT: Tensor, rows: Sequence[int], config: PPOConfig
    ) -> tuple[Tensor, Tensor | None]:
        """(proximal log-probabilities, importance weights) of some responses whose present log-probabilities are given."""
        chosen, device = list(rows), logprobs_BT.device
        if config.proximal != "log_linear":
            weights_BT = self.weights_BT[chosen].to(device) if self.weights_BT is not None else None
            return self.proximal_BT[chosen].to(device), weights_BT
        behaviour_BT = self.behaviour_BT[chosen].to(device)
        proximal_BT = losses.log_linear_proximal(logprobs_BT, behaviour_BT, self.age_BT[chosen].to(device))
        return proximal_BT, self.correction(proximal_BT, config, chosen)

    def correction(
        self, proximal_BT: Tensor, config: PPOConfig, rows: Sequence[int] | None = None
    ) -> Tensor | None:
        """Importance weights of some responses (of all of them without `rows`)."""
        chosen = list(range(len(self.mask_BT)) if rows is None else rows)
        behaviour_BT, mask_BT = (x[chosen].to(proximal_BT.device) for x in (self.behaviour_BT, self.mask_BT))
        low, high = config.correction_low, config.correction_high
        return losses.importance_weights(proximal_BT, behaviour_BT, mask_BT, config.correction, low, high)

    def mismatch(self) -> dict[str, float]:
        """How far the learner's log-probabilities are from the engine's."""
        found = losses.mismatch(self.old_BT, self.behaviour_BT, self.mask_BT, self.weights_BT)
        return {f"mismatch/{name}": value for name, value in found.items()}

    def entropy(self) -> float:
        return float(advantages.masked_mean(self.entropy_BT, self.mask_BT))

    def _explained(self) -> float:
        """Share of the variance of the returns that the critic foresaw."""
        mean = advantages.masked_mean(self.returns_BT, self.mask_BT)
        variance = advantages.masked_mean((self.returns_BT - mean) ** 2, self.mask_BT)
        residual = advantages.masked_mean((self.returns_BT - self.values_BT) ** 2, self.mask_BT)
        return float(1 - residual / variance.clamp(min=1e-8))
