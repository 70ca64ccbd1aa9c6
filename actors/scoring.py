"""A scoring actor: the sources of reward and the reference (SFT) policy, for inference only.

`cluster.fleets.fleet` makes these into Ray actors. Each call takes the samples of one rollout actor straight from the
object store and returns their scores and reference log-probabilities in the same flat layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from actors.config import RewardsConfig, ScoringConfig
from actors.text_rewards import TextReward
from common.errors import UserError
from learners.config import ModelConfig
from learners.data.batching import pad, plan_micro_batches
from learners.data.samples import Samples, concat_ranges
from learners.models import PolicyModule, ScalarModule, load_policy, load_scalar, load_tokenizer


@dataclass(frozen=True)
class Scores:
    """What each of K sources says of B samples, as it came: neither clipped nor weighted."""

    raw_KB: np.ndarray
    """float32; nan where a source has no score."""
    faults: list[dict[str, Any]]
    """For each score that is missing: source, reason, prompt, response."""


class ScoringActor:
    """Sources of reward and reference policy on one device. Without a reward model (`reward`) its scores are 0."""

    def __init__(
        self,
        reference: str,
        reward: str | None,
        config: ScoringConfig,
        rewards: RewardsConfig,
        model: ModelConfig,
    ) -> None:
        torch.set_num_threads(config.threads)
        self.config, self.rewards = config, rewards
        self.device = torch.device("cuda" if torch.cuda.is_available() and config.gpus else "cpu")
        policy = load_policy(reference, config.dtype, model.attention)
        self.reference = PolicyModule(policy).to(self.device).eval()
        scalar = load_scalar(reward, config.dtype, model.attention) if reward and rewards.from_model else None
        self.reward = ScalarModule(scalar).to(self.device).eval() if scalar else None
        if self.reward and self.reward.model.config.vocab_size != policy.config.vocab_size:
            raise UserError(
                f"{reward}: the reward model's vocabulary has {self.reward.model.config.vocab_size} entries, the policy's "
                f"({reference}) {policy.config.vocab_size}; both must come from one tokenizer"
            )
        self.tokenizer = load_tokenizer(reference, model)
        self.pad_token: int = self.tokenizer.pad_token_id
        self.text_rewards = [None if s.kind == "model" else TextReward(s) for s in rewards.sources]

    @torch.inference_mode()
    def score(
        self, samples: Samples, temperature: float, rows: dict[int, dict[str, Any]]
    ) -> tuple[Scores, np.ndarray]:
        """(scores, ref_logprobs_N): what every source says of every response, and the reference log-probability (float32)
        of every response token at the sampling temperature (0 on prompts). `rows` are the prompts' by `prompt_ids_B`."""
        texts = self.tokenizer.batch_decode(
            [samples.response(b) for b in range(samples.size)], skip_special_tokens=True
        )
        asked = [rows.get(int(i), {}) for i in samples.prompt_ids_B]
        cases = list(zip(asked, texts, samples.ended_B.tolist(), strict=True))
        pending = [source and source.start(cases) for source in self.text_rewards]
        scalars_B, ref_N = self._forward(samples, temperature)
        if not np.isfinite(ref_N).all():
            raise FloatingPointError(
                "a reference log-probability is not finite; the reference policy is broken"
            )
        raw_KB, faults = np.zeros((len(pending), samples.size), dtype=np.float32), []
        for k, futures in enumerate(pending):
            found = (
                [f.result() for f in futures] if futures else [(float(x), "not finite") for x in scalars_B]
            )
            raw_KB[k] = [score for score, _ in found]
            name = self.rewards.sources[k].name
            for b in np.flatnonzero(~np.isfinite(raw_KB[k])):
                told = {"prompt": asked[b].get("prompt"), "response": texts[b]}
                faults.append({"source": name, "reason": found[b][1], **told})
        return Scores(np.where(np.isfinite(raw_KB), raw_KB, np.nan), faults), ref_N

    def select(self, samples: Samples, ref_N: np.ndarray, kept: list[int]) -> tuple[Samples, np.ndarray]:
        """The chosen samples and their reference log-probabilities."""
        return samples.select(kept), ref_N[concat_ranges(samples.offsets, kept)]

    def _forward(self, samples: Samples, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        """(scores_B of the reward model at each response's last token, ref_logprobs_N)."""
        scores_B = np.zeros(samples.size, dtype=np.float32)
        ref_N = np.zeros(samples.offsets[-1], dtype=np.float32)
        response_N = samples.response_mask_N
        for micro in plan_micro_batches(samples.lengths_B, 1, self.config.batch_tokens)[0]:
            sequences = [samples.sequence(b) for b in micro]
            tokens_BT = pad(sequences, self.pad_token).to(self.device)
            target_mask_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
            for row, b in enumerate(micro):
                target_mask_BT[row, samples.prompt_lengths_B[b] : len(sequences[row])] = True
            logprobs_N, _ = self.reference(tokens_BT, target_mask_BT, temperature=temperature)
            spans = [np.arange(samples.offsets[b], samples.offsets[b + 1]) for b in micro]
            where = np.concatenate(spans)
            ref_N[where[response_N[where]]] = logprobs_N.cpu().numpy()
            if self.reward:
                scalars_BT = self.reward(tokens_BT)
                scores_B[micro] = [float(scalars_BT[row, len(s) - 1]) for row, s in enumerate(sequences)]
        return scores_B, ref_N
