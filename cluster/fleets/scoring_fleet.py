"""The calls on the scoring actors, with their types.

`actors.scoring.ScoringActor` describes each. A call takes the samples of one engine and runs on the
scoring actor of the same index, modulo their number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import ray

from actors.reward_features import Features
from cluster.fleets.fleet import Fleet


class ScoringFleet(Fleet):
    """Actors that each hold the sources of reward and the reference policy."""

    def submit_score(
        self,
        index: int,
        samples: ray.ObjectRef,
        temperature: float,
        rows: dict[int, dict[str, Any]],
    ) -> tuple[ray.ObjectRef, ray.ObjectRef]:
        """(Scores reference, ref_logprobs_N reference) of one Samples reference. `rows` are the
        prompts' rows by prompt id."""
        scores, ref_logprobs_N = self.submit_split(index, 2, "score", samples, temperature, rows)
        return scores, ref_logprobs_N

    def features(self, rows: list[dict[str, Any]]) -> Features:
        """Of responses, in their order; each actor has a part of them."""
        parts = np.array_split(np.arange(len(rows)), len(self))
        refs = []
        for index, part in enumerate(parts):
            refs.append(self.submit(index, "features", [rows[place] for place in part]))
        found = self.wait(refs, "features")
        return Features(*(np.concatenate(arrays) for arrays in zip(*found, strict=True)))

    def offload(self) -> None:
        """Moves the models to the host."""
        self.all("offload")

    def reload(self) -> None:
        """Moves the models back to the GPU."""
        self.all("reload")

    def submit_select(
        self, index: int, samples: ray.ObjectRef, ref_logprobs_N: ray.ObjectRef, kept: list[int]
    ) -> tuple[ray.ObjectRef, ray.ObjectRef]:
        """The same two references for the kept responses only, without the tokens passing through
        the driver."""
        arguments = (samples, ref_logprobs_N, kept)
        kept_samples, kept_logprobs_N = self.submit_split(index, 2, "select", *arguments)
        return kept_samples, kept_logprobs_N
