"""The record of an episode, RLlib's `SingleAgentEpisode`, and the samples that a batch of them becomes.

Observations and actions are what passed between the environment and the policy (texts or messages). What the
learners need stands in the extra model outputs of each step, as arrays over the tokens of the environment's
words before the turn and of the turn itself:

    tokens           int32
    loss_mask        bool, True on what the policy wrote
    action_logp      float32, the engine's log-probabilities; 0 on the environment's words
    weight_version   int32; -1 on the environment's words
    ended            bool (one for the step), whether the policy wrote its end token
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from actors.environments.messages import StepResult
from learners.data.episodes import Episodes, EpisodeStatus
from learners.data.samples import Samples, offsets_of

TOKENS, LOSS_MASK, VERSION, ENDED = "tokens", "loss_mask", "weight_version", "ended"


@dataclass
class EpisodeRecord:
    """One episode and how it ended."""

    prompt_id: int
    episode: SingleAgentEpisode = field(default_factory=SingleAgentEpisode)
    status: EpisodeStatus = EpisodeStatus.DONE
    reason: str = ""
    prompt: list[int] = field(default_factory=list)
    """Of an episode that failed before the policy's first turn: what is shown for it."""

    def add_turn(self, turn: Turn, action: Any, result: StepResult) -> None:
        """A turn of the policy and what the environment gave for it."""
        self.episode.add_env_step(
            result.observation,
            action,
            result.reward,
            dict(result.info),
            terminated=result.terminated,
            truncated=result.truncated,
            extra_model_outputs=turn.outputs(),
        )

    def end(self, status: EpisodeStatus, reason: str = "") -> None:
        self.status, self.reason = status, reason
        if not self.episode.is_done:
            self.episode.is_truncated = True


@dataclass
class Turn:
    """Tokens of the environment's words (or of the first prompt), and of the policy's turn behind them."""

    words: list[int]
    tokens: list[int]
    logprobs: np.ndarray
    versions: np.ndarray
    ended: bool

    def outputs(self) -> dict[str, Any]:
        """The extra model outputs of the step."""
        before = len(self.words)
        return {
            TOKENS: np.array([*self.words, *self.tokens], dtype=np.int32),
            LOSS_MASK: np.arange(before + len(self.tokens)) >= before,
            Columns.ACTION_LOGP: np.concatenate([np.zeros(before), self.logprobs]).astype(np.float32),
            VERSION: np.concatenate([np.full(before, -1), self.versions]).astype(np.int32),
            ENDED: self.ended,
        }


def samples_of(records: Sequence[EpisodeRecord]) -> Samples:
    """One sequence for each record, in their order."""
    sequences = [_sequence(record) for record in records]
    lengths = [len(sequence[TOKENS]) for sequence in sequences]
    episodes = Episodes(
        policy_mask_N=_joined(sequences, LOSS_MASK, bool),
        rewards_N=_joined(sequences, "rewards", np.float32),
        turns_B=np.array([len(record.episode) for record in records], dtype=np.int32),
        status_B=np.array([record.status for record in records], dtype=np.int8),
        reasons_B=tuple(record.reason for record in records),
        infos_B=tuple(_last_info(record.episode) for record in records),
    )
    return Samples(
        tokens_N=_joined(sequences, TOKENS, np.int32),
        offsets=offsets_of(lengths),
        prompt_lengths_B=np.array([_prompt_length(sequence) for sequence in sequences], dtype=np.int32),
        logprobs_N=_joined(sequences, Columns.ACTION_LOGP, np.float32),
        versions_N=_joined(sequences, VERSION, np.int32),
        prompt_ids_B=np.array([record.prompt_id for record in records], dtype=np.int64),
        ended_B=np.array([sequence[ENDED] for sequence in sequences], dtype=bool),
        episodes=episodes,
    )


def _sequence(record: EpisodeRecord) -> dict[str, Any]:
    """All turns of an episode, one after the other, with the rewards on their last tokens."""
    episode = record.episode
    if len(episode) == 0:
        # It has failed, so nobody learns from it. Scoring actors see it all the same, and they take no
        # sequence without a token behind the prompt.
        words = [*record.prompt, record.prompt[-1]]
        return {"rewards": np.zeros(len(words)), **Turn(words, [], *_NOTHING).outputs()}
    sequence: dict[str, Any] = {}
    for name in (TOKENS, LOSS_MASK, Columns.ACTION_LOGP, VERSION):
        sequence[name] = np.concatenate(episode.get_extra_model_outputs(name))
    steps = episode.get_extra_model_outputs(TOKENS)
    last = np.cumsum([len(tokens) for tokens in steps]) - 1
    sequence["rewards"] = np.zeros(len(sequence[TOKENS]), dtype=np.float32)
    sequence["rewards"][last] = episode.get_rewards()
    sequence[ENDED] = episode.get_extra_model_outputs(ENDED, -1)
    return sequence


_NOTHING: tuple[np.ndarray, np.ndarray, bool] = (np.zeros(0), np.zeros(0), True)


def _prompt_length(sequence: dict[str, Any]) -> int:
    """Tokens before the first one that the policy wrote; all but the last if it wrote none."""
    mask = sequence[LOSS_MASK]
    return int(mask.argmax()) if mask.any() else len(mask) - 1


def _last_info(episode: SingleAgentEpisode) -> dict[str, float]:
    return dict(episode.get_infos(-1)) if len(episode) else {}


def _joined(sequences: Sequence[dict[str, Any]], name: str, dtype: Any) -> np.ndarray:
    return np.concatenate([sequence[name] for sequence in sequences]).astype(dtype)
