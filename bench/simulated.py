"""Stand-ins for engines, scorers and learners that cost nothing to ask: canned results of real sizes, nothing of torch or vLLM
in the process, so that hundreds fit on one machine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from learners.data.samples import Samples, offsets_of


class Engine:
    """Answers every group at once with responses of `length` tokens."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.groups: dict[int, tuple[int, list[int], list[int]]] = {}

    def ready(self) -> None: ...

    def cancel(self) -> None:
        self.groups = {}

    def run_groups(
        self, new: Any, decoding: Any, end_token: int, most: int, oldest: int, seconds: float | None = None
    ) -> tuple[dict[str, list[int]], Samples | None]:
        self.groups |= {place: (prompt_id, prompt, seeds) for place, prompt_id, prompt, seeds in new}
        done = sorted(self.groups)[:most]
        taken = [self.groups.pop(place) for place in done]
        return {"done": done, "dropped": []}, self._samples(taken) if taken else None

    def _samples(self, groups: list[tuple[int, list[int], list[int]]]) -> Samples:
        ids_B = np.repeat([g[0] for g in groups], [len(g[2]) for g in groups]).astype(np.int64)
        prompts_B = np.repeat([len(g[1]) for g in groups], [len(g[2]) for g in groups]).astype(np.int32)
        offsets = offsets_of(prompts_B + self.length)
        size = int(offsets[-1])
        return Samples(
            np.ones(size, np.int32),
            offsets,
            prompts_B,
            np.full(size, -1.0, np.float32),
            np.zeros(size, np.int32),
            ids_B,
            np.ones(len(ids_B), bool),
        )


class Scorer:
    """A score and reference log-probabilities of the right shapes."""

    def ready(self) -> None: ...

    def score(self, samples: Samples, temperature: float, rows: Any) -> tuple[SimpleNamespace, np.ndarray]:
        return SimpleNamespace(raw_KB=np.zeros((1, samples.size), np.float32), faults=[]), np.zeros_like(
            samples.logprobs_N
        )


class Learner:
    """Takes a batch; returns how many tokens came."""

    def ready(self) -> None: ...

    def iterate(self, *batch: Any) -> int:
        return int(sum(samples.offsets[-1] for samples in batch[0::3]))
