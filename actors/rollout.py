"""A rollout actor: one vLLM engine that samples responses and takes new weights between two of its steps.

`cluster.fleets` hosts it in a Ray actor. The engine runs in this process: on CPU that is faster than a process of its
own, and a weight update is a function call. Token ids go in and come out; the driver handles text.

`generate` answers a batch of prompts and returns when all responses are complete: for evaluation and collection.
`run_groups` works on groups (`actors.prompt_group`) for a limited time. Its groups have these states:

    in flight ──last response complete──► finished ──run_groups──► returned with their samples
        └──────────begun before min_version──┴──────────────────► dropped, reported by the next run_groups

A group that is in flight when `run_groups` returns stays in the engine, also over weight updates: its finished tokens
keep the version that wrote them, the following ones come from the new weights.

Every response is sampled with a seed of its own, never with the generator of the engine. A response therefore depends on
its prompt, its seed and the weights alone: not on which engine samples it, on the other requests in a step, or on
whether the run was restarted in between.

vLLM is imported inside functions: its import takes seconds and reads environment variables that `__init__` sets first.
"""

from __future__ import annotations

import itertools
import os
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.config import Decoding, RolloutConfig
from actors.prompt_group import GroupStatus, PromptGroup
from actors.vllm_samples import samples_from_outputs
from actors.weights.transport import WeightPayload
from common.errors import UserError
from learners.data.samples import Samples
from learners.models import resolve_model_path


@dataclass
class InFlightGroup:
    """A group that the engine works on, or has finished and not returned."""

    prompt_id: int
    version: int
    """Weight version that was loaded when the group began."""
    request_ids: list[str]
    """One for each response."""


class RolloutActor:
    """A vLLM engine, its weight version and the groups it works on. Implements `RolloutEngine`."""

    def __init__(
        self, name: str, model_path: str, config: RolloutConfig, seed: int = 0, version: int = 0
    ) -> None:
        started = time.perf_counter()
        self.name = name
        self.version = version
        self._loaded_version = version
        self.llm = _start_vllm(model_path, config, seed)
        self.llm.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": {}})
        self.engine = self.llm.llm_engine
        self._max_model_len: int = self.engine.model_config.max_model_len
        self._request_numbers = itertools.count()
        self._groups: dict[int, InFlightGroup] = {}
        self._finished: dict[str, Any] = {}
        """Outputs of finished requests, by request id, until somebody takes them."""
        self._dropped: list[int] = []
        """Groups that were dropped since the last `run_groups`."""
        # Compiles kernels, so that no timing includes it.
        self.generate([[0, 1]], [0], Decoding(max_tokens=2), end_token=0)
        self._start_seconds = time.perf_counter() - started

    def ready(self) -> dict[str, Any]:
        """What is loaded: name, weight version, process id, and the seconds that the start took."""
        return {
            "name": self.name,
            "version": self.version,
            "pid": os.getpid(),
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
        """n responses to each prompt, prompt by prompt. `seeds` holds one for each response; None: the engine's own
        generator. Raises UserError if a prompt and its response could exceed the engine's context."""
        self._check_lengths(prompts, decoding)
        request_ids = []
        for i, prompt in enumerate(prompts):
            prompt_seeds: Sequence[int | None] = [None] * n
            if seeds is not None:
                prompt_seeds = seeds[i * n : (i + 1) * n]
            request_ids += self._add_responses(prompt, prompt_seeds, decoding, end_token)
        prompt_ids_B = np.repeat(np.asarray(prompt_ids, dtype=np.int64), n)
        outputs = self._finish(request_ids)
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
        """Takes on new groups and works until `max_groups` are finished, nothing is left or `seconds` are over.

        Returns the groups that the engine no longer holds, and the samples of the finished ones in ascending order of
        group index (None if there are none). Finished groups that began under weights before `min_version` are dropped.
        Raises UserError if a prompt and its response could exceed the engine's context.
        """
        if new:
            self._check_lengths([group.tokens for group in new], decoding)
        for group in new:
            request_ids = self._add_responses(group.tokens, group.seeds, decoding, end_token)
            self._groups[group.index] = InFlightGroup(group.prompt_id, self.version, request_ids)
        deadline = float("inf")
        if seconds is not None:
            deadline = time.monotonic() + seconds
        finished = self._finished_groups()
        while len(finished) < min(max_groups, len(self._groups)) and time.monotonic() < deadline:
            self._step()
            finished = self._finished_groups()
        self._drop([index for index in finished if self._groups[index].version < min_version])
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

    def update_weights(self, payload: WeightPayload, version: int, min_version: int = 0) -> float:
        """Loads the weights that a transport sent; returns the seconds it took.

        Groups that began under weights before `min_version` are dropped. The others pause meanwhile, compute their keys
        and values again and go on. A failed update ends the process, since the engine cannot be used any more. Raises
        UserError if the payload's file does not exist; the engine is then unchanged.
        """
        from actors.weights.vllm import apply_update

        started = time.perf_counter()
        self._drop([index for index, group in self._groups.items() if group.version < min_version])
        try:
            apply_update(self.llm, payload, version)
        except RuntimeError as error:
            traceback.print_exc()
            raise SystemExit(str(error)) from error
        self.version = version
        return time.perf_counter() - started

    def prompt_logprobs(self, sequences: Sequence[list[int]]) -> list[np.ndarray]:
        """Log-probability (nats, float32, temperature 1) of every token but the first of each sequence: the sync probe."""
        from vllm import SamplingParams

        request_ids = []
        for sequence in sequences:
            params = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
            request_ids.append(self._add_request(list(sequence), params))
        results = []
        for sequence, output in zip(sequences, self._finish(request_ids), strict=True):
            # vLLM has no log-probability for the first token; its entry is None.
            token_logprobs = zip(sequence[1:], output.prompt_logprobs[1:], strict=True)
            logprobs = [entry[token].logprob for token, entry in token_logprobs]
            results.append(np.array(logprobs, dtype=np.float32))
        return results

    def _check_lengths(self, prompts: Sequence[list[int]], decoding: Decoding) -> None:
        longest = max(len(prompt) for prompt in prompts)
        if longest + decoding.max_tokens > self._max_model_len:
            raise UserError(
                f"a prompt of {longest} tokens and {decoding.max_tokens} for the response are more than the engine's "
                f"{self._max_model_len}; shorten the prompt, lower max_tokens or raise model.context"
            )

    def _add_responses(
        self, prompt: list[int], seeds: Sequence[int | None], decoding: Decoding, end_token: int
    ) -> list[str]:
        """Adds one request for each seed to the engine; returns their ids."""
        from vllm import SamplingParams

        sampling = decoding.model_dump(include={"temperature", "top_p", "top_k", "min_p", "max_tokens"})
        request_ids = []
        for seed in seeds:
            params = SamplingParams(
                **sampling,
                stop_token_ids=[end_token],
                seed=seed,
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,
            )
            request_ids.append(self._add_request(prompt, params))
        return request_ids

    def _add_request(self, prompt: list[int], params: Any) -> str:
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        # Only the finished output: intermediate ones would be built at every step and thrown away.
        params.output_kind = RequestOutputKind.FINAL_ONLY
        request_id = str(next(self._request_numbers))
        self.engine.add_request(request_id, TokensPrompt(prompt_token_ids=list(prompt)), params)
        return request_id

    def _step(self) -> None:
        """One engine step: up to one token for each running request."""
        for output in self.engine.step():
            if output.finished:
                self._finished[output.request_id] = output

    def _finish(self, request_ids: list[str]) -> list[Any]:
        """Steps until the requests are finished (groups in flight advance too); takes and returns their outputs."""
        while not all(request_id in self._finished for request_id in request_ids):
            self._step()
        return [self._finished.pop(request_id) for request_id in request_ids]

    def _finished_groups(self) -> list[int]:
        """Groups whose responses are all complete."""
        finished = []
        for index, group in self._groups.items():
            if all(request_id in self._finished for request_id in group.request_ids):
                finished.append(index)
        return finished

    def _take_samples(self, indices: Sequence[int], end_token: int) -> Samples:
        """Takes finished groups out of the engine; returns their samples, group by group."""
        outputs, prompt_ids = [], []
        for index in indices:
            group = self._groups.pop(index)
            for request_id in group.request_ids:
                outputs.append(self._finished.pop(request_id))
                prompt_ids.append(group.prompt_id)
        prompt_ids_B = np.array(prompt_ids, dtype=np.int64)
        return samples_from_outputs(outputs, prompt_ids_B, end_token, self._loaded_version)

    def _drop(self, indices: Sequence[int]) -> None:
        """Removes groups with their requests, to be reported as dropped."""
        for index in indices:
            unfinished = []
            for request_id in self._groups.pop(index).request_ids:
                if self._finished.pop(request_id, None) is None:
                    unfinished.append(request_id)
            self.engine.abort_request(unfinished)
            self._dropped.append(index)


def _start_vllm(model_path: str, config: RolloutConfig, seed: int) -> Any:
    """A `vllm.LLM` in this process, ready to receive weights."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("OMP_NUM_THREADS", str(config.threads))
    from vllm import LLM

    from actors.weights.vllm import transfer_config

    on_cpu = not config.gpus
    kv_cache_bytes, chunked_prefill = None, None
    if on_cpu:
        kv_cache_bytes = int(config.kv_cache_gib * 2**30)
        # A prompt that is processed in two parts resets the generator of a seeded request, which fails on CPU.
        chunked_prefill = False
    return LLM(
        model=resolve_model_path(model_path),
        dtype=config.dtype,
        seed=seed,
        tensor_parallel_size=config.tensor_parallel,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_sequences,
        gpu_memory_utilization=config.gpu_memory_utilization,
        kv_cache_memory_bytes=kv_cache_bytes,
        enforce_eager=config.enforce_eager,
        enable_chunked_prefill=chunked_prefill,
        logprobs_mode="processed_logprobs",
        weight_transfer_config=transfer_config(),
        skip_tokenizer_init=True,
        disable_log_stats=True,
    )
