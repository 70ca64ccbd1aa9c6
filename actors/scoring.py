"""A scoring actor: the sources of reward and, where something uses it, the reference (SFT) policy, for
inference only.

`cluster.fleets` hosts it in a Ray actor. Each call takes the samples of one rollout actor straight
from the object store and returns their scores and reference log-probabilities in the same flat
layout.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from actors.config import ScoringConfig
from actors.function_rewards import FunctionTextReward
from actors.judge_rewards import JudgeTextReward
from actors.reward_config import RewardsConfig
from actors.reward_features import Features, response_features
from actors.reward_models import RewardModel, as_reward_model
from actors.scoring_models import ModelSources, load_models
from actors.text_rewards import HTTPTextReward, RewardRequest, RewardResult, TextReward
from common.hardware import require_device, require_free_memory
from learners.config import ModelConfig
from learners.data.batching import plan_responses
from learners.data.episodes import EpisodeStatus
from learners.data.packing import pack
from learners.data.samples import Samples, concat_ranges
from learners.data.tokenizer_loading import load_tokenizer
from learners.data.transcripts import TRANSCRIPT, answer_texts, transcript


@dataclass(frozen=True)
class Scores:
    """The scores of B responses by C reward sources, before clipping, normalization and
    weighting."""

    raw_CB: np.ndarray
    """float32; nan where a source has failed, 0 where it does not apply."""
    applies_CB: np.ndarray
    """bool; whether the source applies to the response."""
    failures: list[dict[str, Any]]
    """One for each missing score: source, reason, prompt, response."""


class ScoringActor:
    """Reward sources and reference policy on one device. Without a reward model the model's scores
    are 0, and without the reference there are no reference log-probabilities."""

    def __init__(
        self,
        policy: str,
        reward_model: str | None,
        config: ScoringConfig,
        rewards: RewardsConfig,
        model: ModelConfig,
        uses_reference: bool = True,
        device: Literal["cpu", "cuda"] = "cpu",
    ) -> None:
        """`policy` is the folder of the reference, whose tokens the samples are, and `reward_model` that of
        the trained reward model; other reward models are in `rewards`. Raises UserError for a reward model
        that reads other tokens and has no tokenizer, for a model that does not pass `check_forward`, or if
        `device` is cuda and this process sees no GPU."""
        require_device(device)
        torch.set_num_threads(config.threads)
        self.config, self.rewards = config, rewards
        self.device = torch.device(device)
        self._is_away = False
        self.tokenizer = load_tokenizer(policy, model)
        paths = dict(rewards.model_paths)
        if reward_model and rewards.uses_reward_model:
            paths |= {c: reward_model for c in rewards.model_indices if c not in paths}
        reference = policy if uses_reference else None
        models = load_models(ModelSources(reference, tuple(paths.values()), config, model), self.device)
        self.reference, self.span = models.reference, models.span
        self.shares_prompts = models.shares_prompts
        self.reward_models: dict[int, RewardModel] = {}
        """By their position in `rewards.sources`."""
        for (c, path), module in zip(paths.items(), models.reward_models, strict=True):
            template = rewards.template_of(c)
            self.reward_models[c] = as_reward_model(module, path, policy, self.tokenizer, template)
        self.pad_token: int = self.tokenizer.pad_token_id
        self.text_rewards: dict[int, TextReward] = {}
        """Those of the sources that read the text, by their position in `rewards.sources`."""
        for c, source in enumerate(rewards.sources):
            if source.kind == "function":
                self.text_rewards[c] = FunctionTextReward(source)
            elif source.kind == "http":
                self.text_rewards[c] = HTTPTextReward(source)
            elif source.kind == "judge":
                self.text_rewards[c] = JudgeTextReward(source)

    def offload(self) -> None:
        """Moves the models to the host, for those who share the GPU. Nothing if they are there."""
        self._move(torch.device("cpu"))
        self._is_away = True

    def reload(self) -> None:
        """Moves the models back. Raises RuntimeError if the GPU has no room for them."""
        if self._is_away and self.device.type == "cuda":
            require_free_memory(sum(_bytes(module) for module in self._modules), "the scoring models")
        self._move(self.device)
        self._is_away = False

    @property
    def _modules(self) -> list[torch.nn.Module]:
        """Those of this process alone: a layout does not share GPUs with models that are cut."""
        models = (self.reference, *[model.module for model in self.reward_models.values()])
        return [module for module in models if isinstance(module, torch.nn.Module)]

    def _move(self, device: torch.device) -> None:
        for module in self._modules:
            module.to(device)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def score(
        self, samples: Samples, temperature: float, rows: dict[int, dict[str, Any]]
    ) -> tuple[Scores, np.ndarray | None]:
        """(scores, ref_logprobs_N): the score of every response by every source, and the reference
        log-probability (nats, float32) of every response token at the sampling temperature, 0 on
        prompts; None without the reference. `rows` holds rows of the prompt file by `prompt_ids_B`;
        only sources that read the text need them. Raises FloatingPointError if a reference
        log-probability is not finite, and RuntimeError while the models are offloaded."""
        if self._is_away:
            raise RuntimeError("the scoring models are offloaded; reload them first")
        requests = self._requests(samples, rows)
        # Submitted before the forward passes and collected after, so that both run at the same
        # time.
        pending = {c: reward.submit(requests) for c, reward in self.text_rewards.items()}
        model_scores, ref_logprobs_N = self._forward(samples, temperature)
        if ref_logprobs_N is not None and not np.isfinite(ref_logprobs_N).all():
            raise FloatingPointError(
                "a reference log-probability is not finite; the reference policy is broken"
            )
        results = self._model_results(requests, model_scores)
        for c, source in enumerate(self.rewards.sources):
            if source.kind == "environment":
                results[c] = environment_results(samples)
        return self._collect(samples, requests, pending, results), ref_logprobs_N

    @torch.inference_mode()
    def features(self, rows: list[dict[str, Any]]) -> Features:
        """What the first reward model's head reads of each response. A row has prompt, response, ended."""
        requests = [RewardRequest(row, row["response"], row["ended"]) for row in rows]
        model = next(iter(self.reward_models.values()))
        budget = self.config.batch_tokens
        return response_features(model, self.tokenizer, requests, budget, self.span, self.device)

    def select(
        self, samples: Samples, ref_logprobs_N: np.ndarray | None, kept: list[int]
    ) -> tuple[Samples, np.ndarray | None]:
        """The samples at positions `kept`, and their reference log-probabilities."""
        if ref_logprobs_N is not None:
            ref_logprobs_N = ref_logprobs_N[concat_ranges(samples.offsets, kept)]
        return samples.select(kept), ref_logprobs_N

    def _requests(self, samples: Samples, rows: dict[int, dict[str, Any]]) -> list[RewardRequest]:
        requests = []
        for b, text in enumerate(answer_texts(self.tokenizer, samples)):
            row = rows.get(int(samples.prompt_ids_B[b]), {})
            if samples.episodes is not None:
                row = {**row, TRANSCRIPT: transcript(self.tokenizer, samples, b)}
            requests.append(RewardRequest(row, text, bool(samples.ended_B[b])))
        return requests

    def _model_results(
        self, requests: list[RewardRequest], scores: dict[int, np.ndarray]
    ) -> dict[int, list[RewardResult]]:
        """By source: `scores` of the reward models that read the policy's tokens, and those of the models
        that read texts."""
        results = {}
        for c, model in self.reward_models.items():
            if model.tokenizer is not None:
                budget = self.config.batch_tokens
                results[c] = model.score_texts(requests, budget, self.span, self.device)
            else:
                results[c] = [RewardResult(float(score), "not finite") for score in scores[c]]
        return results

    def _collect(
        self,
        samples: Samples,
        requests: list[RewardRequest],
        pending: dict[int, list[Future[list[RewardResult]]]],
        of_models: dict[int, list[RewardResult]],
    ) -> Scores:
        """Waits for the text rewards and puts all scores together."""
        shape = (len(self.rewards.sources), len(requests))
        scores = Scores(np.zeros(shape, dtype=np.float32), np.ones(shape, dtype=bool), [])
        for c, name in enumerate(self.rewards.names):
            if c in pending:
                results = [result for future in pending[c] for result in future.result()]
            else:
                # Without a reward model its scores are 0.
                results = of_models.get(c) or [RewardResult(0.0)] * len(requests)
            for b, (request, result) in enumerate(zip(requests, results, strict=True)):
                if result.score is None:
                    scores.applies_CB[c, b] = False
                elif np.isfinite(result.score):
                    scores.raw_CB[c, b] = result.score
                else:
                    # One mark for all kinds of failure: a reward model may also give an infinite
                    # score.
                    scores.raw_CB[c, b] = np.nan
                    scores.failures.append(_failure(name, result.failure, request))
        for b, reason in _failed_episodes(samples):
            scores.raw_CB[:, b] = np.nan
            scores.failures.append(_failure("environment", reason, requests[b]))
        # Most often a function that forgets to return its number.
        for b in np.flatnonzero(~scores.applies_CB[self.rewards.counting].any(axis=0)):
            scores.raw_CB[:, b] = np.nan
            reason = "no source of reward applies to this response: each gave None"
            scores.failures.append(_failure(", ".join(self.rewards.names), reason, requests[b]))
        return scores

    def _forward(
        self, samples: Samples, temperature: float
    ) -> tuple[dict[int, np.ndarray], np.ndarray | None]:
        """(scores_B of each reward model that reads the policy's tokens, at each response's last token, by
        source; ref_logprobs_N)."""
        reading = {c: model.module for c, model in self.reward_models.items() if model.tokenizer is None}
        scores = {c: np.zeros(samples.size, dtype=np.float32) for c in reading}
        ref_logprobs_N = None
        if self.reference:
            ref_logprobs_N = np.zeros(samples.offsets[-1], dtype=np.float32)
        if not self.reference and not reading:
            return scores, ref_logprobs_N
        response_mask_N = samples.response_mask_N
        prompts_B = samples.prompt_lengths_B
        sequences = [samples.sequence(b) for b in range(samples.size)]
        targets = [samples.targets(b) for b in range(samples.size)]
        plan = plan_responses(
            sequences,
            prompts_B,
            1,
            self.config.batch_tokens,
            self.span,
            self.shares_prompts,
            budget_key="scoring.batch_tokens",
        )
        for micro in plan[0]:
            packed = pack(
                [sequences[b] for b in micro],
                [targets[b] for b in micro],
                self.pad_token,
                self.span,
                prompts_B[micro] if self.shares_prompts else None,
            ).to(self.device)
            in_order = [micro[i] for i in packed.order]
            layout = (packed.positions_RT, packed.before_N, packed.attention_RTT)
            if self.reference and ref_logprobs_N is not None:
                logprobs_N, _ = self.reference(packed.tokens_RT, packed.target_mask_RT, *layout, temperature)
                # In the order in which the rows have the response tokens.
                positions = concat_ranges(samples.offsets, in_order)
                ref_logprobs_N[positions[response_mask_N[positions]]] = logprobs_N.cpu().numpy()
            for c, module in reading.items():
                scalars_RT = module(packed.tokens_RT, packed.positions_RT, packed.attention_RTT)
                scores[c][in_order] = scalars_RT.flatten()[packed.last_S].cpu().numpy()
        return scores, ref_logprobs_N


def environment_results(samples: Samples) -> list[RewardResult]:
    """The sum of the rewards of each episode."""
    if samples.episodes is None:
        raise ValueError("rewards.sources has kind environment, and these samples are of none")
    return [RewardResult(float(value)) for value in samples.episodes.returns_B(samples.offsets)]


def _failed_episodes(samples: Samples) -> list[tuple[int, str]]:
    """(position, reason) of the episodes that nobody may learn from."""
    episodes = samples.episodes
    if episodes is None:
        return []
    failed = np.flatnonzero(episodes.status_B == EpisodeStatus.FAILED).tolist()
    return [(b, episodes.reasons_B[b]) for b in failed]


def _bytes(module: torch.nn.Module) -> int:
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _failure(source: str, reason: str, request: RewardRequest) -> dict[str, Any]:
    return {
        "source": source,
        "reason": reason,
        "prompt": request.row.get("prompt"),
        "response": request.response,
    }
