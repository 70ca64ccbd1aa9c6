"""The calls that stages and the rollout scheduler make on the vLLM engines, with their types.

`actors.rollout.RolloutActor` describes each; `actors.prompt_group.RolloutEngine` is the part that
test doubles implement.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import ray

from actors.config import Decoding
from actors.prompt_group import PromptGroup
from actors.weights.payload import WeightPayload
from cluster.fleets.fleet import Fleet


class RolloutFleet(Fleet):
    """vLLM engines that hold the same policy version."""

    def ready(self) -> list[dict[str, Any]]:
        """Name, weight version, process id and start-up seconds of each engine."""
        return self.all("ready")

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        prompt_ids: Sequence[int],
        decoding: Decoding,
        end_token: int,
        n: int = 1,
        seeds: Sequence[int] | None = None,
    ) -> list[ray.ObjectRef]:
        """Starts sampling n responses to each prompt over the whole fleet. One Samples reference
        per engine, in the order of the prompts. `seeds` holds one per response, prompt by prompt.
        """
        # Contiguous shares: the results, one after the other, are in the order of the prompts.
        share = -(-len(prompts) // len(self))
        refs = []
        for index, start in enumerate(range(0, len(prompts), share)):
            end = start + share
            tokens = [list(prompt) for prompt in prompts[start:end]]
            engine_seeds = None
            if seeds is not None:
                engine_seeds = list(seeds[start * n : end * n])
            arguments = (tokens, list(prompt_ids[start:end]), decoding, end_token, n, engine_seeds)
            refs.append(self.submit(index, "generate", *arguments))
        return refs

    def run_episodes(
        self, groups: Sequence[PromptGroup], decoding: Decoding, end_token: int
    ) -> list[ray.ObjectRef]:
        """Starts the episodes of all groups over the whole fleet. One Samples reference per engine, in the
        order of the groups."""
        share = -(-len(groups) // len(self))
        refs = []
        for index, start in enumerate(range(0, len(groups), share)):
            arguments = (list(groups[start : start + share]), decoding, end_token)
            refs.append(self.submit(index, "run_episodes", *arguments))
        return refs

    def submit_run_groups(
        self,
        index: int,
        new: Sequence[PromptGroup],
        decoding: Decoding,
        end_token: int,
        max_groups: int,
        min_version: int,
        seconds: float | None = None,
    ) -> tuple[ray.ObjectRef, ray.ObjectRef]:
        """References of (GroupStatus, Samples) of one engine; see `RolloutEngine.run_groups`."""
        arguments = (new, decoding, end_token, max_groups, min_version, seconds)
        status, samples = self.submit_split(index, 2, "run_groups", *arguments)
        return status, samples

    def submit_update(
        self,
        index: int,
        payload: WeightPayload,
        version: int,
        min_version: int = 0,
        arrays: ray.ObjectRef | None = None,
    ) -> ray.ObjectRef:
        """Loads a bucket that `LearnerFleet.send_bucket` returned into one engine; with the first one,
        drops groups begun before `min_version`. Reference of the seconds it took."""
        return self.submit(index, "update_weights", payload, version, min_version, arrays)

    def submit_join_link(self, index: int, address: tuple[str, int], timeout_s: float) -> ray.ObjectRef:
        """Has the workers of one engine join the link that learner rank 0 has opened for it."""
        return self.submit(index, "join_link", address, timeout_s)

    def prompt_logprobs(self, sequences: list[list[int]]) -> list[list[np.ndarray]]:
        """For each engine: log-probabilities of every token but the first of each sequence, at
        temperature 1."""
        return self.all("prompt_logprobs", sequences)

    def sleep(self, level: int = 1) -> None:
        """Frees the GPUs of engines that hold no groups. Level 1 keeps the weights in host memory, level 2
        drops them."""
        self.all("sleep", level)

    def wake(self, tags: Sequence[str] = ("weights", "kv_cache")) -> None:
        """Takes GPU memory for these parts again."""
        self.all("wake", list(tags))

    def cancel_groups(self) -> None:
        """Drops all groups that engines work on."""
        self.all("cancel_groups")
