"""A scored batch in parts: what a rollout actor sampled at once, with the scores and reference
log-probabilities of it.

Ray turns object references into values only where they stand alone among the arguments of a call.
So a batch travels to the learners as a flat list, and this module is the only place that knows
its order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from learners.data.samples import Samples


@dataclass(frozen=True)
class ScoredPart:
    """B responses with what the scoring actors say of them. In the driver the first and last
    field are Ray references of these values."""

    samples: Samples
    scores_B: np.ndarray
    """float32. The combined reward of each response."""
    ref_logprobs_N: np.ndarray | None
    """float32. Reference log-probability of each response token at the sampling temperature; 0 on
    prompts. None in a run without the reference policy."""


def flatten_parts(parts: Sequence[ScoredPart]) -> list[Any]:
    """The arguments of a call for these parts; `unflatten_parts` on the other side gives them
    back."""
    values = []
    for part in parts:
        values += [part.samples, part.scores_B, part.ref_logprobs_N]
    return values


def unflatten_parts(values: Sequence[Any]) -> list[ScoredPart]:
    """The parts whose fields came as the arguments of a call."""
    return [ScoredPart(*values[i : i + 3]) for i in range(0, len(values), 3)]
