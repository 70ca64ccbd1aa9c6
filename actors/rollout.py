"""A rollout actor: a vLLM engine that samples responses and takes new weights between two steps.

`cluster.fleets` hosts it in a Ray actor. Token ids go in and come out; the driver handles text.

`generate` answers a batch of prompts and returns when all responses are complete: for evaluation
and collection. `run_groups` works on groups (`actors.prompt_group`) for a limited time. The states
of a group:

    in flight ──all responses complete──► finished ──run_groups──► returned with its samples
        │                                    │
        └──── begun before min_version ──────┴───► dropped, reported by the next run_groups

A group that is in flight when `run_groups` returns stays in the engine, also over weight updates.
Its earlier tokens keep the version of the weights that wrote them, and the later ones have that of
the new weights.

Every response of a group is sampled with a seed of its own, never with the generator of the engine.
So it depends on its prompt, its seed and the weights alone: not on the engine that samples it, on
the other requests in a step, or on a restart of the run in between.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.config import Decoding, EngineDevices, RolloutConfig
from actors.prompt_group import GroupStatus, PromptGroup, RolloutEngine
from actors.vllm_engine import VLLMEngine
from actors.vllm_samples import samples_from_outputs
from actors.weights.payload import WeightPayload
from actors.weights.vllm import init_transfer, load_bucket, num_workers
from common.errors import UserError
from learners.data.samples import Samples


@dataclass
class InFlightGroup:
    """A group that has begun and has not been returned."""

    prompt_id: int
    version: int
    """Weight version that was loaded when the group began."""
    request_ids: list[str]
    """One for each response."""


class RolloutActor(RolloutEngine):
    """A vLLM engine, the version of its weights and the groups that it works on."""

    def __init__(
        self,
        name: str,
        model_path: str,
        config: RolloutConfig,
        seed: int = 0,
        version: int = 0,
        devices: EngineDevices | None = None,
    ) -> None:
        """`version` is that of the weights in `model_path`. `devices` None: on the CPU, with a process for
        each of several workers."""
        started = time.perf_counter()
        self.name = name
        self.engine = VLLMEngine(model_path, config, seed, devices)
        self.version = version
        self._loaded_version = version
        self._next_bucket = 0
        """Number of the bucket that the engine waits for; over 0 it holds neither old nor new weights."""
        self._groups: dict[int, InFlightGroup] = {}
        self._dropped: list[int] = []
        """Groups that were dropped since the last `run_groups`."""
        # Compiles kernels, so that no timing includes it.
        self.generate([[0, 1]], [0], Decoding(max_tokens=2), end_token=0)
        self._start_seconds = time.perf_counter() - started

    def ready(self) -> dict[str, Any]:
        """What is loaded: name, weight version, process id, number of processes that the model is
        spread over, and the seconds that the start took."""
        return {
            "name": self.name,
            "version": self.version,
            "pid": os.getpid(),
            "workers": num_workers(self.engine.llm),
            "seconds": self._start_seconds,
        }

    def generate(
        self,
        prompts: Sequence[list[int]],
        prompt_ids: Sequence[int],
        decoding: Decoding,
        end_token: int,
        n: int = 1,
        seeds: Sequence[int] | None = None,
    ) -> Samples:
        """n responses to each prompt, prompt by prompt. `seeds` holds one for each response; None:
        the engine's own generator. Groups in flight advance meanwhile. Raises UserError if a prompt
        and its response could exceed the engine's context."""
        self._check_lengths(prompts, decoding)
        request_ids = []
        for i, prompt in enumerate(prompts):
            prompt_seeds: Sequence[int | None] = [None] * n  # None: the engine's generator
            if seeds is not None:
                prompt_seeds = seeds[i * n : (i + 1) * n]
            request_ids += self.engine.add_responses(prompt, prompt_seeds, decoding, end_token)
        outputs = self.engine.finish(request_ids)
        prompt_ids_B = np.repeat(np.asarray(prompt_ids, dtype=np.int64), n)
        return samples_from_outputs(outputs, prompt_ids_B, end_token, self._loaded_version)

    def run_groups(
        self,
        new: Sequence[PromptGroup],
        decoding: Decoding,
        end_token: int,
        max_groups: int,
        min_version: int,
        seconds: float | None = None,
    ) -> tuple[GroupStatus, Samples | None]:
        """Works until `max_groups` are finished, nothing is left or `seconds` are over.

        First takes on `new` groups. Returns the groups that the engine no longer holds, and the
        samples of the finished ones in ascending order of group index (None if there are none).
        Finished groups that began under weights before `min_version` are dropped. Raises UserError
        if a prompt and its response could exceed the engine's context.
        """
        if new:
            self._check_lengths([group.tokens for group in new], decoding)
        for group in new:
            self._groups[group.index] = self._begin(group, decoding, end_token)
        # None: a synchronous run, which has nothing to do until all groups are finished.
        deadline = float("inf")
        if seconds is not None:
            deadline = time.monotonic() + seconds
        finished = self._finished_groups()
        while len(finished) < min(max_groups, len(self._groups)) and time.monotonic() < deadline:
            self._step()
            finished = self._finished_groups()
        self._drop([index for index in finished if self._groups[index].version < min_version])
        # Ascending, so that what is returned does not depend on which group happened to finish
        # first.
        returned = sorted(index for index in finished if index in self._groups)[:max_groups]
        status = GroupStatus(finished=returned, dropped=self._dropped)
        self._dropped = []
        if not returned:
            return status, None
        return status, self._take_samples(returned, end_token)

    def cancel_groups(self) -> None:
        """Drops all groups without reporting them, for a driver that starts again."""
        self._drop(list(self._groups))
        self._dropped = []

    def join_link(self, address: tuple[str, int], timeout_s: float) -> None:
        """Has the engine's workers join the link of the broadcast transport that learner rank 0 has
        opened at `address`; returns when all have met. A failure ends the process."""
        try:
            with self.engine.guard.during("joining the learners"):
                init_transfer(self.engine.llm, address, timeout_s)
        except Exception as error:
            self.engine.end("joining the learners failed", error)

    def update_weights(
        self,
        payload: WeightPayload,
        version: int,
        min_version: int = 0,
        arrays: Mapping[str, np.ndarray] | None = None,
    ) -> float:
        """Loads one bucket of the weights that a transport sent; returns the seconds it took. With the
        first bucket the update starts, and with the last one the engine holds the new version; in between
        no other call may use the engine. `arrays` are the bytes of each tensor, where they come through
        the object store.

        Groups that began under weights before `min_version` are dropped. The others pause
        meanwhile, compute their keys and values again and go on. A failed update ends the process,
        since the engine cannot be used any more. Raises UserError if the weights cannot be found;
        the engine then keeps the old ones.
        """
        started = time.perf_counter()
        if payload.number != self._next_bucket:
            raise SystemExit(
                f"bucket {payload.number} of version {version} came in place of {self._next_bucket}"
            )
        # Before the update, so that no step recomputes keys and values of groups that nobody needs.
        self._drop([index for index, group in self._groups.items() if group.version < min_version])
        try:
            with self.engine.guard.during("an update of the weights"):
                load_bucket(self.engine.llm, payload, version, arrays)
        except RuntimeError as error:
            self.engine.end("an update of the weights failed", error)  # the fleet then starts another
        self._next_bucket = 0 if payload.last else payload.number + 1
        if payload.last:
            self.version = version
            self.engine.sleeper.updated()
        return time.perf_counter() - started

    def sleep(self, level: int = 1) -> None:
        """Frees the GPU for others. Raises RuntimeError while groups are in flight."""
        self.engine.sleep(level)

    def wake(self, tags: Sequence[str]) -> None:
        """Takes the GPU memory of "weights" or "kv_cache" again."""
        self.engine.sleeper.wake(tags)

    def prompt_logprobs(self, sequences: Sequence[list[int]]) -> list[np.ndarray]:
        """Log-probability of every token but the first of each sequence: the probe of a weight
        sync. In nats, float32, at temperature 1."""
        request_ids = [self.engine.add_prompt_logprobs(sequence) for sequence in sequences]
        results = []
        for sequence, output in zip(sequences, self.engine.finish(request_ids), strict=True):
            # vLLM has no log-probability for the first token; its entry is None.
            token_logprobs = zip(sequence[1:], output.prompt_logprobs[1:], strict=True)
            logprobs = [entry[token].logprob for token, entry in token_logprobs]
            results.append(np.array(logprobs, dtype=np.float32))
        return results

    def _check_lengths(self, prompts: Sequence[list[int]], decoding: Decoding) -> None:
        # vLLM would end the response at the context limit, as if it had been decoded with fewer
        # tokens.
        longest, limit = max(len(prompt) for prompt in prompts), self.engine.max_model_len
        if longest + decoding.max_tokens > limit:
            raise UserError(
                f"a prompt of {longest} tokens and {decoding.max_tokens} for the response are more than "
                f"the engine's {limit}; shorten the prompt, lower max_tokens or raise model.context"
            )

    # What `actors.episode_rollout` does differently.

    def _begin(self, group: PromptGroup, decoding: Decoding, end_token: int) -> InFlightGroup:
        request_ids = self.engine.add_responses(group.tokens, group.seeds, decoding, end_token)
        return InFlightGroup(group.prompt_id, self.version, request_ids)

    def _step(self) -> None:
        self.engine.step()

    def _is_finished(self, group: InFlightGroup) -> bool:
        return self.engine.are_finished(group.request_ids)

    def _remove(self, group: InFlightGroup) -> None:
        self.engine.remove(group.request_ids)

    def _finished_groups(self) -> list[int]:
        """Groups whose responses are all complete."""
        return [index for index, group in self._groups.items() if self._is_finished(group)]

    def _take_samples(self, indices: Sequence[int], end_token: int) -> Samples:
        """Takes finished groups out of the engine; returns their samples, group by group."""
        outputs: list[Any] = []
        prompt_ids: list[int] = []
        for index in indices:
            group = self._groups.pop(index)
            outputs += self.engine.take(group.request_ids)
            prompt_ids += [group.prompt_id] * len(group.request_ids)
        prompt_ids_B = np.array(prompt_ids, dtype=np.int64)
        return samples_from_outputs(outputs, prompt_ids_B, end_token, self._loaded_version)

    def _drop(self, indices: Sequence[int]) -> None:
        """Removes groups with their requests, to be reported as dropped."""
        for index in indices:
            self._remove(self._groups.pop(index))
            self._dropped.append(index)
