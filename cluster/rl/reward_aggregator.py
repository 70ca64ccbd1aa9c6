"""From the raw scores of several sources to one reward for each response.

    samples ─► scoring actors ─► raw scores ─► clip ─► normalize ─► weighted sum ─► learners
                             └─► reference log-probabilities ─► learners (not through the driver)

Called by `cluster.rl.rollout_scheduler`: `submit` when samples arrive, `finish` when a batch is
complete. `finish` waits for the scoring actors. A response without a finite score from every
source that counts goes to quarantine.jsonl, with the reason, and not to the learners. Here C is the
number of sources and B the number of responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.reward_config import AnyReward, RewardsConfig
from actors.scoring import Scores
from cluster.config import RunConfig
from cluster.fleets.scoring_fleet import ScoringFleet
from cluster.rl.reward_ensemble import DISAGREEMENT, combine, combined_models
from common.errors import RunStoppedError
from common.files import to_json
from learners.rl.scored_parts import ScoredPart

Rows = dict[int, dict[str, Any]]
"""Rows of the prompt file by prompt id."""


@dataclass(frozen=True)
class PendingPart:
    """Samples of one call to a rollout actor that a scoring actor works on, all as references."""

    index: int
    """The scoring actor (modulo the size of the fleet)."""
    samples: ray.ObjectRef
    scores: ray.ObjectRef
    ref_logprobs_N: ray.ObjectRef


@dataclass
class RunningMoments:
    """Mean and variance of all numbers so far (Chan et al. 1979, eq. 2.1)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared deviations from the mean."""

    def add(self, values: np.ndarray) -> None:
        mean, total = float(values.mean()), self.count + len(values)
        delta = mean - self.mean
        squares = float(((values - mean) ** 2).sum())
        self.squares = self.squares + squares + delta**2 * self.count * len(values) / total
        self.mean += delta * len(values) / total
        self.count = total

    @property
    def std(self) -> float:
        return (self.squares / self.count) ** 0.5


def rewards_of(
    config: RunConfig, scorers: ScoringFleet, quarantine: Path, state: dict[str, Any] | None
) -> RewardAggregator:
    """The aggregator of a run, from its beginning or from the `state` of a checkpoint."""
    return RewardAggregator(config.rewards, scorers, quarantine, state, config.scoring_reads_rows)


class RewardAggregator:
    """Combines scores with running statistics of each source, which `state` continues from a
    checkpoint."""

    def __init__(
        self,
        config: RewardsConfig,
        scorers: ScoringFleet,
        quarantine: Path,
        state: dict[str, Any] | None = None,
        reads_rows: bool | None = None,
    ) -> None:
        """`reads_rows` says whether the sources need the rows of the prompt file; None: unless all of them
        are reward models."""
        if reads_rows is None:
            reads_rows = config.reads_texts
        self.reads_rows = reads_rows
        self.config, self.scorers, self.quarantine = config, scorers, quarantine
        self._moments = [RunningMoments() for _ in config.sources]
        self._num_responses = self._num_quarantined = 0
        if state:
            self._moments = [RunningMoments(**moments) for moments in state["moments"]]
            self._num_responses = state["responses"]
            self._num_quarantined = state["quarantined"]

    @property
    def state(self) -> dict[str, Any]:
        """For a checkpoint: plain values of all batches that were finished."""
        return {
            "responses": self._num_responses,
            "quarantined": self._num_quarantined,
            "moments": [vars(moments).copy() for moments in self._moments],
        }

    def score(
        self, refs: Sequence[ray.ObjectRef], rows: Rows, temperature: float, step: int
    ) -> tuple[list[ScoredPart], dict[str, float]]:
        """`submit` for each reference of samples, then `finish`."""
        parts = []
        for index, samples in enumerate(refs):
            parts.append(self.submit(index, samples, rows, temperature))
        return self.finish(parts, step)

    def submit(self, index: int, samples: ray.ObjectRef, rows: Rows, temperature: float) -> PendingPart:
        """Has a scoring actor score samples as soon as they exist. `rows` are rows of the prompt
        file by prompt id."""
        if not self.reads_rows:
            rows = {}
        scores, ref_logprobs_N = self.scorers.submit_score(index, samples, temperature, rows)
        return PendingPart(index, samples, scores, ref_logprobs_N)

    def finish(self, parts: Sequence[PendingPart], step: int) -> tuple[list[ScoredPart], dict[str, float]]:
        """(scored parts, metrics) of a batch, in the order of `parts`. Samples and ref_logprobs_N
        stay references.

        Raises RunStoppedError if more responses than rewards.quarantine_share have no reward.
        """
        references = {part.scores: part.index for part in parts}
        results: list[Scores] = self.scorers.wait(references, "score")
        kept = [self._reward_is_known(scores.raw_CB) for scores in results]
        self._record_quarantine(results, kept, step)
        raw_parts, applies_parts = [], []
        for scores, kept_B in zip(results, kept, strict=True):
            raw_parts.append(scores.raw_CB[:, kept_B])
            applies_parts.append(scores.applies_CB[:, kept_B])
        raw_CB = np.concatenate(raw_parts, axis=1).astype(np.float64)
        reward_B, metrics = self._combine(raw_CB, np.concatenate(applies_parts, axis=1))
        metrics["rewards/quarantined"] = float(self._num_quarantined)
        ends = np.cumsum([int(kept_B.sum()) for kept_B in kept])
        shares = np.split(reward_B.astype(np.float32), ends[:-1])
        scored = []
        for part, kept_B, scores_B in zip(parts, kept, shares, strict=True):
            samples, ref_logprobs_N = part.samples, part.ref_logprobs_N
            # The samples are in the object store; a scoring actor cuts them without the driver.
            if not kept_B.all():
                chosen = np.flatnonzero(kept_B).tolist()
                samples, ref_logprobs_N = self.scorers.submit_select(
                    part.index, samples, ref_logprobs_N, chosen
                )
            scored.append(ScoredPart(samples, scores_B, ref_logprobs_N))
        return scored, metrics

    def _reward_is_known(self, raw_CB: np.ndarray) -> np.ndarray:
        """bool (B,): no source has failed, but for those that are only watched."""
        known_B: np.ndarray = np.isfinite(raw_CB[self.config.counting]).all(axis=0)
        return known_B

    def _combine(self, raw_CB: np.ndarray, applies_CB: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        """(reward_B, mean raw score of each source if there are several). A source counts only where it
        applies."""
        reward_B, metrics = np.zeros(raw_CB.shape[1]), {}
        combined_CB = []
        for c, (source, moments) in enumerate(zip(self.config.sources, self._moments, strict=True)):
            applies_B = applies_CB[c]
            if not applies_B.any():
                continue
            raw_B = raw_CB[c, applies_B]
            if len(self.config.sources) > 1 and np.isfinite(raw_B).any():
                metrics[f"rewards/{self.config.names[c]}"] = float(np.nanmean(raw_B))
            if not source.weight:
                continue
            score_B = clip(raw_B, source)
            if source.normalize:
                moments.add(score_B)
                score_B = (score_B - moments.mean) / max(1e-6, moments.std)
            if c in combined_models(self.config):
                combined_CB.append(score_B)
            else:
                reward_B[applies_B] += source.weight * score_B
        if combined_CB:
            combined_B, disagreement_B = combine(np.array(combined_CB), self.config)
            reward_B += combined_B
            metrics[f"rewards/{DISAGREEMENT}"] = float(disagreement_B.mean())
        return reward_B, metrics

    def _record_quarantine(self, results: Sequence[Scores], kept: Sequence[np.ndarray], step: int) -> None:
        """Writes the responses without a reward down, counts them, and stops the run if they are
        too many."""
        failures = [failure for scores in results for failure in scores.failures]
        with open(self.quarantine, "a", encoding="utf-8") as file:
            for failure in failures:
                file.write(to_json({"step": step, **failure}) + "\n")
        # A batch that lost everything stops the run too, however few that is of all so far:
        # there is nothing to learn from.
        kept_B = np.concatenate(kept)
        self._num_responses += len(kept_B)
        self._num_quarantined += int((~kept_B).sum())
        share = self.config.quarantine_share
        if not kept_B.any() or self._num_quarantined > share * self._num_responses:
            last = failures[-1]
            raise RunStoppedError(
                f"{self._num_quarantined} of {self._num_responses} responses have no reward, over "
                f"rewards.quarantine_share={share}; the last: {last['source']}: "
                f"{last['reason']}; all are in {self.quarantine}"
            )


def clip(score_B: np.ndarray, source: AnyReward) -> np.ndarray:
    if source.clip is None:
        return score_B
    return score_B.clip(-source.clip, source.clip)
