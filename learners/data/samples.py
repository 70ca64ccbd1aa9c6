"""A batch of sampled responses as flat arrays with offsets: what travels between actors.

Rollout actors make it, scoring actors and learners read it. Nothing is padded: N is the number of
tokens over all B sequences, and sequence b is `tokens_N[offsets[b]:offsets[b + 1]]`, prompt
first, response after it. numpy arrays come out of Ray's object store without a copy, so every
reader on a node shares one memory.

The response of an episode has several turns of the policy, and between them the words of the environment:

    tokens            prompt   turn 1   environment   turn 2
    response mask     0 0 0    1 1 1    0 0 0 0       1 1
    rewards           0 0 0    0 0 r1   0 0 0 0       0 r2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from learners.data.episodes import Episodes


@dataclass(frozen=True)
class Samples:
    """B sampled sequences of N tokens in all."""

    tokens_N: np.ndarray
    """int32. Prompt tokens, then response tokens (with the end token if it was written), sequence
    by sequence."""
    offsets: np.ndarray
    """int64 (B + 1). Where each sequence starts; the last entry is N."""
    prompt_lengths_B: np.ndarray
    """int32. How many of a sequence's tokens are its prompt."""
    logprobs_N: np.ndarray
    """float32. The engine's log-probability (natural log, at the sampling temperature) of each
    response token; 0 on prompts."""
    versions_N: np.ndarray
    """int32. The weight version that wrote each response token; -1 on prompts."""
    prompt_ids_B: np.ndarray
    """int64. Which row of the prompt file each sequence answers."""
    ended_B: np.ndarray
    """bool. Whether the response closed with the end-of-turn token (False: cut at the length
    limit)."""
    episodes: Episodes | None = None
    """What an environment adds. None: every sequence is one prompt and one response."""

    @property
    def size(self) -> int:
        """B, the number of sequences."""
        return len(self.offsets) - 1

    @property
    def lengths_B(self) -> np.ndarray:
        return np.diff(self.offsets)

    @property
    def response_lengths_B(self) -> np.ndarray:
        """Tokens that the policy wrote."""
        if self.episodes is not None:
            before_N = np.concatenate([[0], np.cumsum(self.episodes.policy_mask_N)])
            return np.diff(before_N[self.offsets])
        return self.lengths_B - self.prompt_lengths_B

    @property
    def response_mask_N(self) -> np.ndarray:
        """bool (N,): True on tokens that the policy wrote."""
        if self.episodes is not None:
            return self.episodes.policy_mask_N
        # Position of each token in its own sequence.
        position_N = np.arange(self.offsets[-1]) - np.repeat(self.offsets[:-1], self.lengths_B)
        return position_N >= np.repeat(self.prompt_lengths_B, self.lengths_B)

    def targets(self, b: int) -> np.ndarray:
        """bool: which tokens of sequence b the policy wrote."""
        if self.episodes is not None:
            return self.episodes.policy_mask_N[self.offsets[b] : self.offsets[b + 1]]
        return np.arange(self.offsets[b + 1] - self.offsets[b]) >= self.prompt_lengths_B[b]

    def sequence(self, b: int) -> np.ndarray:
        return self.tokens_N[self.offsets[b] : self.offsets[b + 1]]

    def response(self, b: int) -> np.ndarray:
        """All that follows the prompt, the words of an environment too."""
        return self.tokens_N[self.offsets[b] + self.prompt_lengths_B[b] : self.offsets[b + 1]]

    def select(self, indices: Sequence[int]) -> Samples:
        """The sequences of these indices, in this order."""
        chosen = list(indices)
        token_indices = concat_ranges(self.offsets, chosen)
        return Samples(
            tokens_N=self.tokens_N[token_indices],
            offsets=offsets_of(self.lengths_B[chosen]),
            prompt_lengths_B=self.prompt_lengths_B[chosen],
            logprobs_N=self.logprobs_N[token_indices],
            versions_N=self.versions_N[token_indices],
            prompt_ids_B=self.prompt_ids_B[chosen],
            ended_B=self.ended_B[chosen],
            episodes=self.episodes and self.episodes.select(chosen, token_indices),
        )

    @staticmethod
    def concat(parts: Sequence[Samples]) -> Samples:
        """All sequences of the parts, one part after the other. Either all or none are of episodes."""
        arrays = {}
        for name in (f.name for f in fields(Samples)):
            # Offsets count from the start of their own part, so they are made again.
            if name not in ("offsets", "episodes"):
                arrays[name] = np.concatenate([getattr(part, name) for part in parts])
        of_parts = [part.episodes for part in parts if part.episodes is not None]
        episodes = Episodes.concat(of_parts) if of_parts else None
        offsets = offsets_of(np.concatenate([part.lengths_B for part in parts]))
        return Samples(offsets=offsets, episodes=episodes, **arrays)


def offsets_of(lengths_B: Sequence[int] | np.ndarray) -> np.ndarray:
    """int64 (B + 1): running sum of lengths, starting at 0."""
    return np.concatenate([[0], np.cumsum(lengths_B)]).astype(np.int64)


def concat_ranges(offsets: np.ndarray, indices: Sequence[int]) -> np.ndarray:
    """int64: positions of the tokens of these sequences, one sequence after the other."""
    # The empty range is for no indices at all.
    ranges = [np.arange(offsets[i], offsets[i + 1]) for i in indices]
    return np.concatenate([np.zeros(0, np.int64), *ranges])
