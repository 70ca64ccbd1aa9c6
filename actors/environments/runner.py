"""Runs episodes: turns of the policy by the engine, steps of the environment by its workers, all beside each
other.

    RESETTING ──observation──► SAMPLING ──turn complete──► STEPPING ──observation──► SAMPLING … ──► over
                                                              │ terminated, truncated, late, failed ──► over

The engine works on the turns that are ready, whatever episodes they belong to, and no engine step waits
for an environment. What is sampled in an episode depends on its prompt, its seeds, the environment and the
weights alone: not on who is faster. `actors.episode_rollout` calls `work` in place of a step of the engine.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from actors.config import Decoding
from actors.environments.config import EnvironmentConfig
from actors.environments.messages import StepResult, as_messages
from actors.environments.pool import EnvironmentPool, StepFailure
from actors.environments.record import EpisodeRecord, Turn
from actors.environments.tool_calls import ToolCallReader
from actors.vllm_engine import VLLMEngine
from actors.vllm_samples import response_versions
from common.random_streams import Stream, derived_seed
from learners.data.conversations import InvalidRow
from learners.data.environment_turns import EnvironmentTurns
from learners.data.episodes import EpisodeStatus
from learners.data.turn_tokens import response_texts

IDLE_WAIT_S = 0.05
"""How long to wait for environments when the engine has nothing to do."""


@dataclass
class Episode:
    """An episode that has begun."""

    number: int
    seed: int
    decoding: Decoding
    end_token: int
    record: EpisodeRecord
    tokens: list[int] = field(default_factory=list)
    """Everything so far; the prompt of the next turn."""
    prompt_length: int = 0
    words: list[int] = field(default_factory=list)
    """Of the environment, behind the last turn and part of `tokens`; first the prompt."""
    turn: Turn | None = None
    """That the environment has been given."""
    action: Any = None
    turns: int = 0
    is_over: bool = False


class EpisodeRunner:
    """The episodes of one engine."""

    def __init__(
        self,
        engine: VLLMEngine,
        pool: EnvironmentPool,
        tokenizer: PreTrainedTokenizerBase,
        config: EnvironmentConfig,
        loaded_version: int,
    ) -> None:
        self._engine, self._pool, self._tokenizer, self._config = engine, pool, tokenizer, config
        self._loaded_version = loaded_version
        self._renderer = EnvironmentTurns(tokenizer)
        self._reader = ToolCallReader(config.tool_parser, tokenizer)
        self._numbers = itertools.count()
        self._episodes: dict[int, Episode] = {}
        self._requests: dict[str, Episode] = {}
        """Requests of turns that the engine samples."""

    def begin(
        self,
        prompt_id: int,
        prompt: list[int],
        row: dict[str, Any] | None,
        environment_seed: int,
        seed: int,
        decoding: Decoding,
        end_token: int,
    ) -> Episode:
        """`prompt` are the tokens of the row's own prompt, which stand where the environment says nothing
        first. `seed` is that of the policy's first turn."""
        number = next(self._numbers)
        record = EpisodeRecord(prompt_id, prompt=prompt)
        episode = Episode(number, seed, decoding, end_token, record)
        self._episodes[number] = episode
        self._pool.reset(number, environment_seed, row)
        return episode

    def work(self) -> None:
        """Takes what environments have answered, then one step of the engine."""
        for number, outcome in self._pool.poll(0.0 if self._requests else IDLE_WAIT_S):
            episode = self._episodes.get(number)
            if episode is None:
                continue
            if isinstance(outcome, StepFailure):
                self._on_failure(episode, outcome)
            elif episode.turn is None:
                self._on_reset(episode, outcome)
            else:
                self._on_step(episode, episode.turn, outcome)
        if not self._requests:
            return
        self._engine.step()
        for request_id in [key for key in self._requests if self._engine.are_finished([key])]:
            self._on_turn(self._requests.pop(request_id), request_id)

    def drop(self, episodes: Sequence[Episode]) -> None:
        """Ends episodes that nobody waits for any more."""
        numbers = {episode.number for episode in episodes}
        requests = [key for key, episode in self._requests.items() if episode.number in numbers]
        self._engine.remove(requests)
        for request_id in requests:
            del self._requests[request_id]
        for number in numbers & self._episodes.keys():
            del self._episodes[number]
            self._pool.forget(number)

    def _on_reset(self, episode: Episode, result: StepResult) -> None:
        messages = as_messages(result.observation)
        try:
            prompt = episode.record.prompt
            if messages:
                prompt = self._renderer.first_prompt(messages, result.tools)
        except InvalidRow as error:
            self._end(episode, EpisodeStatus.FAILED, str(error))
            return
        episode.record.prompt = prompt
        episode.record.episode.add_env_reset(result.observation, dict(result.info))
        episode.prompt_length = len(prompt)
        if not self._sample(episode, prompt):
            limit = self._engine.max_model_len
            reason = (
                f"its first prompt has {len(prompt)} tokens, which leaves no room in a context of {limit}"
            )
            self._end(episode, EpisodeStatus.FAILED, reason)

    def _on_turn(self, episode: Episode, request_id: str) -> None:
        """The policy has written a turn: the environment's turn."""
        completion = self._engine.take([request_id])[0].outputs[0]
        tokens = list(completion.token_ids)
        versions = response_versions(completion, self._loaded_version)
        episode.turn = Turn(
            episode.words,
            tokens,
            np.asarray(completion.logprobs.logprobs, dtype=np.float32),
            np.concatenate([np.zeros(0), *versions]),
            ended=bool(tokens) and tokens[-1] == episode.end_token,
        )
        episode.tokens += tokens
        episode.turns += 1
        text = response_texts(self._tokenizer, [tokens])[0]
        episode.action = self._reader.message(text) if self._pool.takes_messages else text
        self._pool.step(episode.number, episode.action)

    def _on_step(self, episode: Episode, turn: Turn, result: StepResult) -> None:
        episode.record.add_turn(turn, episode.action, result)
        if result.terminated:
            self._end(episode, EpisodeStatus.DONE)
            return
        # A turn that was cut has no end, so nobody can answer to it.
        if result.truncated or not turn.ended or episode.turns >= self._config.turns:
            self._end(episode, EpisodeStatus.TRUNCATED)
            return
        try:
            words = self._renderer.words(as_messages(result.observation), turn.ended)
        except InvalidRow as error:
            self._end(episode, EpisodeStatus.FAILED, str(error))
            return
        if not self._sample(episode, words):
            self._end(episode, EpisodeStatus.TRUNCATED)

    def _sample(self, episode: Episode, words: list[int]) -> bool:
        """Has the engine sample the turn behind `words`; False if there is no token left for it."""
        length = len(episode.tokens) + len(words)
        room = min(episode.prompt_length + self._config.tokens - length, self._engine.max_model_len - length)
        if room < 1:
            return False
        episode.words = words
        episode.tokens += words
        decoding = episode.decoding
        if room < decoding.max_tokens:
            decoding = decoding.model_copy(update={"max_tokens": room})
        seed = turn_seed(episode.seed, episode.turns)
        request_ids = self._engine.add_responses(episode.tokens, [seed], decoding, episode.end_token)
        self._requests[request_ids[0]] = episode
        return True

    def _on_failure(self, episode: Episode, failure: StepFailure) -> None:
        if episode.turn is None or failure.kind == "failed":
            # Without a turn there is nothing to learn from.
            self._end(episode, EpisodeStatus.FAILED, failure.reason)
            return
        episode.record.add_turn(episode.turn, episode.action, StepResult("", truncated=True))
        self._end(episode, EpisodeStatus.TIMED_OUT, failure.reason)

    def _end(self, episode: Episode, status: EpisodeStatus, reason: str = "") -> None:
        episode.record.end(status, reason)
        episode.is_over = True
        del self._episodes[episode.number]
        self._pool.forget(episode.number)


def turn_seed(seed: int, turn: int) -> int:
    """The sampling seed of a turn. The first has that of the episode, as a single response does."""
    if turn == 0:
        return seed
    return derived_seed(seed, Stream.TURN_SEEDS, turn)
