"""The turns of an episode as texts, for reports, reward functions and judges."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from learners.data.samples import Samples
from learners.data.turn_tokens import response_texts

TRANSCRIPT = "episode"
"""Key of a row under which reward functions get the turns."""


def transcript(tokenizer: PreTrainedTokenizerBase, samples: Samples, b: int) -> list[dict[str, Any]]:
    """The turns of sequence b: who wrote each ("prompt", "policy" or "environment"), its text with all
    special tokens but the policy's end token, and the reward of the policy's. What is learned from is the
    policy's."""
    episodes = samples.episodes
    if episodes is None:
        raise ValueError("transcripts are of episodes; these samples are single responses")
    start, end = int(samples.offsets[b]), int(samples.offsets[b + 1])
    mask = episodes.policy_mask_N[start:end]
    edges = np.flatnonzero(np.diff(mask.astype(np.int8))) + 1
    bounds = [0, *edges.tolist(), end - start]
    turns: list[dict[str, Any]] = []
    for first, last in itertools.pairwise(bounds):
        if first == last:
            continue
        tokens = samples.tokens_N[start + first : start + last]
        if mask[first]:
            reward = float(episodes.rewards_N[start + first : start + last].sum())
            text = response_texts(tokenizer, [tokens])[0]
            turns.append({"by": "policy", "text": text, "reward": reward})
        else:
            text = tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
            turns.append({"by": "environment" if turns else "prompt", "text": text})
    return turns


def answer_texts(tokenizer: PreTrainedTokenizerBase, samples: Samples) -> list[str]:
    """The policy's last words in each sequence: of a single response the whole, of an episode the last
    turn."""
    return response_texts(tokenizer, [last_turn(samples, b) for b in range(samples.size)])


def last_turn(samples: Samples, b: int) -> np.ndarray:
    """Token ids of the policy's last turn; none if it wrote nothing."""
    if samples.episodes is None:
        return samples.response(b)
    sequence, mask = samples.sequence(b), samples.targets(b)
    written = np.flatnonzero(mask)
    if not len(written):
        return sequence[:0]
    end = written[-1] + 1
    before = np.flatnonzero(~mask[:end])
    return sequence[(before[-1] + 1 if len(before) else 0) : end]
