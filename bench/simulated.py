"""Stand-ins for engines, scorers and learners that cost nothing to ask: canned results of real sizes, nothing of torch or vLLM
in the process, so that hundreds fit on one machine."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from actors.prompt_group import GroupStatus, PromptGroup
from learners.data.samples import Samples, offsets_of


class Engine:
    """Answers every group at once with responses of `length` tokens."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.groups: dict[int, PromptGroup] = {}

    def ready(self) -> None: ...

    def cancel_groups(self) -> None:
        self.groups = {}

    def run_groups(
        self,
        new: Sequence[PromptGroup],
        decoding: Any,
        end_token: int,
        max_groups: int,
        min_version: int,
        seconds: float | None = None,
    ) -> tuple[GroupStatus, Samples | None]:
        self.groups |= {group.index: group for group in new}
        finished = sorted(self.groups)[:max_groups]
        taken = [self.groups.pop(index) for index in finished]
        return GroupStatus(finished=finished), self._samples(taken) if taken else None

    def _samples(self, groups: Sequence[PromptGroup]) -> Samples:
        counts = [len(group.seeds) for group in groups]
        ids_B = np.repeat([group.prompt_id for group in groups], counts).astype(np.int64)
        prompts_B = np.repeat([len(group.tokens) for group in groups], counts).astype(np.int32)
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
        return SimpleNamespace(raw_CB=np.zeros((1, samples.size), np.float32), failures=[]), np.zeros_like(
            samples.logprobs_N
        )


class Learner:
    """Takes a batch; returns how many tokens came."""

    def ready(self) -> None: ...

    def iterate(self, *batch: Any) -> int:
        return int(sum(samples.offsets[-1] for samples in batch[0::3]))
