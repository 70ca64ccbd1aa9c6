"""A scoring actor: the reward model and the reference (SFT) policy, frozen, for inference only.

`cluster.fleet` makes these into Ray actors. Each call takes the samples of one rollout actor straight from the
object store and returns their scores and reference log-probabilities in the same flat layout.
"""

from __future__ import annotations

import numpy as np
import torch

from actors.config import ScoringConfig
from learners.batching import pad, plan_micro_batches
from learners.errors import UserError
from learners.models import PolicyModule, ScalarModule, load_policy, load_scalar
from learners.ragged import Samples


class ScoringActor:
    """Reward model (may be absent, then scores are 0) and reference policy on one device."""

    def __init__(self, reference: str, reward: str | None, config: ScoringConfig) -> None:
        torch.set_num_threads(config.threads)
        self.config = config
        self.device = torch.device("cuda" if torch.cuda.is_available() and config.gpus else "cpu")
        policy = load_policy(reference, config.dtype)
        self.reference = PolicyModule(policy).to(self.device).eval()
        self.reward = ScalarModule(load_scalar(reward, config.dtype)).to(self.device).eval() if reward else None
        if self.reward and self.reward.model.config.vocab_size != policy.config.vocab_size:
            raise UserError(
                f"{reward}: the reward model's vocabulary has {self.reward.model.config.vocab_size} entries, the policy's "
                f"({reference}) {policy.config.vocab_size}; both must come from one tokenizer"
            )
        self.pad_token = policy.config.pad_token_id or 0

    @torch.inference_mode()
    def score(self, samples: Samples, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        """(scores_B, ref_logprobs_N), float32: the reward model's scalar at each response's last token, and the reference
        log-probability of every response token at the sampling temperature (0 on prompts)."""
        scores_B = np.zeros(samples.size, dtype=np.float32)
        ref_N = np.zeros(samples.offsets[-1], dtype=np.float32)
        response_N = samples.response_mask_N
        for micro in plan_micro_batches(samples.lengths_B, 1, self.config.batch_tokens)[0]:
            sequences = [samples.sequence(b) for b in micro]
            tokens_BT = pad(sequences, self.pad_token).to(self.device)
            chosen_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
            for row, b in enumerate(micro):
                chosen_BT[row, samples.prompt_lengths_B[b] : len(sequences[row])] = True
            logprobs_N, _ = self.reference(tokens_BT, chosen_BT, temperature=temperature)
            spans = [np.arange(samples.offsets[b], samples.offsets[b + 1]) for b in micro]
            where = np.concatenate(spans)
            ref_N[where[response_N[where]]] = logprobs_N.cpu().numpy()
            if self.reward:
                scalars_BT = self.reward(tokens_BT)
                scores_B[micro] = [float(scalars_BT[row, len(s) - 1]) for row, s in enumerate(sequences)]
        if not (np.isfinite(scores_B).all() and np.isfinite(ref_N).all()):
            raise FloatingPointError("a score or reference log-probability is not finite; the reward model is broken")
        return scores_B, ref_N
