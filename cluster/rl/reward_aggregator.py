"""What the driver keeps of a run's rewards: running statistics of each source, and what had to be left out.

    sample references -> scoring actors -> raw scores -> clip, normalise, weigh, add -> learners
                                        -> reference log-probabilities, which stay where they are

A sample without a finite score from every source goes to quarantine.jsonl, with the reason, and not to the learners.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.config import RewardsConfig, RewardSource
from actors.scoring import Scores
from cluster.fleets.fleet import Fleet
from common.errors import UserError


@dataclass(frozen=True)
class Part:
    """A part of a batch and what a scoring actor makes of it, as references."""

    index: int
    samples: ray.ObjectRef
    scores: ray.ObjectRef
    reference: ray.ObjectRef


class RewardAggregator:
    """Turns samples into scored samples. `state` is what a checkpoint keeps; give it back to go on from there."""

    def __init__(
        self, config: RewardsConfig, scorers: Fleet, folder: Path, state: dict[str, Any] | None = None
    ) -> None:
        self.config, self.scorers, self.path = config, scorers, folder / "quarantine.jsonl"
        self.state: dict[str, Any] = state or {
            "seen": 0,
            "quarantined": 0,
            "moments": [[0, 0.0, 0.0]] * len(config.sources),
        }

    def score(
        self, refs: Sequence[ray.ObjectRef], rows: dict[int, dict[str, Any]], temperature: float, step: int
    ) -> tuple[list[Any], dict[str, float]]:
        """Has every part scored: `submit` and `finish` in one."""
        return self.finish([self.submit(i, ref, rows, temperature) for i, ref in enumerate(refs)], step)

    def submit(
        self, index: int, ref: ray.ObjectRef, rows: dict[int, dict[str, Any]], temperature: float
    ) -> Part:
        """Has a scoring actor score a part of a batch as soon as it is there."""
        known = rows if any(source.kind != "model" for source in self.config.sources) else {}
        return Part(index, ref, *self.scorers.submit_split(index, 2, "score", ref, temperature, known))

    def finish(self, parts: Sequence[Part], step: int) -> tuple[list[Any], dict[str, float]]:
        """(batch, metrics): for each part a reference of Samples, its scores_B and a reference of its ref_logprobs_N, as
        `LearnerActor.iterate` takes them."""
        found: list[Scores] = self.scorers.get({part.scores: part.index for part in parts}, "score")
        finite = [np.isfinite(scores.raw_KB).all(0) for scores in found]
        self._quarantine(
            found, sum(int((~kept).sum()) for kept in finite), sum(len(kept) for kept in finite), step
        )
        raw_KB = np.concatenate(
            [scores.raw_KB[:, kept] for scores, kept in zip(found, finite, strict=True)], axis=1
        )
        total_B, metrics = self._combined(raw_KB.astype(np.float64))
        shares = np.split(total_B.astype(np.float32), np.cumsum([int(kept.sum()) for kept in finite])[:-1])
        batch: list[Any] = []
        for part, kept, share_B in zip(parts, finite, shares, strict=True):
            samples, reference = part.samples, part.reference
            if not kept.all():
                chosen = np.flatnonzero(kept).tolist()
                samples, reference = self.scorers.submit_split(
                    part.index, 2, "select", samples, reference, chosen
                )
            batch += [samples, share_B, reference]
        metrics["rewards/quarantined"] = float(self.state["quarantined"])
        return batch, metrics

    def _combined(self, raw_KB: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        """The weighted sum (B,) of the sources' scores, and the mean raw score of each source where there are several."""
        total_B, metrics = np.zeros(raw_KB.shape[1]), {}
        for k, source in enumerate(self.config.sources):
            score_B = clipped(raw_KB[k], source)
            if source.normalize:
                count, mean, square = self.state["moments"][k] = merged(self.state["moments"][k], score_B)
                score_B = (score_B - mean) / max(1e-6, (square / count) ** 0.5)
            total_B += source.weight * score_B
            metrics[f"rewards/{source.name}"] = float(raw_KB[k].mean())
        return total_B, metrics if len(self.config.sources) > 1 else {}

    def _quarantine(self, found: Sequence[Scores], lost: int, seen: int, step: int) -> None:
        faults = [fault for scores in found for fault in scores.faults]
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps({"step": step, **fault}, default=str) + "\n" for fault in faults))
        self.state["seen"] += seen
        self.state["quarantined"] += lost
        if lost == seen or self.state["quarantined"] > self.config.quarantine_share * self.state["seen"]:
            raise UserError(
                f"{self.state['quarantined']} of {self.state['seen']} responses have no reward, over "
                f"rewards.quarantine_share={self.config.quarantine_share}; the last: {faults[-1]['source']}: "
                f"{faults[-1]['reason']}; all are in {self.path}"
            )


def clipped(score_B: np.ndarray, source: RewardSource) -> np.ndarray:
    return score_B if source.clip is None else score_B.clip(-source.clip, source.clip)


def merged(moments: Sequence[float], score_B: np.ndarray) -> list[float]:
    """[count, mean, sum of squared deviations] with further scores (Chan et al. 1979, eq. 2.1)."""
    count, mean, square = moments
    more, other = len(score_B), float(score_B.mean())
    total, apart = count + more, other - mean
    return [
        total,
        mean + apart * more / total,
        square + float(((score_B - other) ** 2).sum()) + apart**2 * count * more / total,
    ]
