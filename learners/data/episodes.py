"""What episodes of an environment add to a batch of samples: which tokens the policy wrote, the rewards of
its turns, and how each episode came to its end.

`actors.environments` makes it, scoring actors and learners read it. N is the number of tokens over all B
episodes, as in `learners.data.samples.Samples`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np


class EpisodeStatus(IntEnum):
    """How an episode came to its end. Numbers are stored: add at the end, never renumber."""

    DONE = 0
    """The environment terminated it."""
    TRUNCATED = 1
    """The environment cut it, or its turns or tokens were used up."""
    TIMED_OUT = 2
    """A step took longer than environment.step_timeout_s; what came before is learned from."""
    FAILED = 3
    """The environment raised an error, died or gave something that is none of its results: quarantined."""


@dataclass(frozen=True)
class Episodes:
    """B episodes of N tokens in all."""

    policy_mask_N: np.ndarray
    """bool. Tokens that the policy wrote; the others are of the prompt or the environment."""
    rewards_N: np.ndarray
    """float32. The reward of each turn on its last token, 0 elsewhere."""
    turns_B: np.ndarray
    """int32. Turns of the policy."""
    status_B: np.ndarray
    """int8. `EpisodeStatus`."""
    reasons_B: tuple[str, ...]
    """Why an episode failed or timed out; empty for the others."""
    infos_B: tuple[dict[str, float], ...]
    """Numbers of the last `info` of the environment."""

    def returns_B(self, offsets: np.ndarray) -> np.ndarray:
        """float32: the sum of the rewards of each episode."""
        # Summed in float64 and in one order everywhere, since the learners take it off again.
        before_N = np.concatenate([[0.0], np.cumsum(self.rewards_N, dtype=np.float64)])
        return np.diff(before_N[offsets]).astype(np.float32)

    def select(self, indices: Sequence[int], token_indices: np.ndarray) -> Episodes:
        """The episodes of these indices, whose tokens are at `token_indices`."""
        return Episodes(
            self.policy_mask_N[token_indices],
            self.rewards_N[token_indices],
            self.turns_B[list(indices)],
            self.status_B[list(indices)],
            tuple(self.reasons_B[i] for i in indices),
            tuple(self.infos_B[i] for i in indices),
        )

    @staticmethod
    def concat(parts: Sequence[Episodes]) -> Episodes:
        """All episodes of the parts, one part after the other."""
        return Episodes(
            np.concatenate([part.policy_mask_N for part in parts]),
            np.concatenate([part.rewards_N for part in parts]),
            np.concatenate([part.turns_B for part in parts]),
            np.concatenate([part.status_B for part in parts]),
            tuple(reason for part in parts for reason in part.reasons_B),
            tuple(info for part in parts for info in part.infos_B),
        )


def turn_ends(mask_N: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """bool (N,): the last token of each turn, where the policy mask ends or the sequence does."""
    ends_N = mask_N.copy()
    ends_N[:-1] &= ~mask_N[1:]
    last = offsets[1:][np.diff(offsets) > 0] - 1
    ends_N[last] = mask_N[last]
    return ends_N
