"""A rollout actor: one vLLM engine that samples responses and takes new weights between two of its steps.

`cluster.fleets.fleet` makes these into Ray actors. The engine runs in this process (on CPU that is faster than a process
of its own, and a weight update is a function call). Token ids go in and come out; text is the driver's business.

`generate` answers a batch and returns it whole. `run_groups` answers groups of responses that come and go: what is not finished
when it returns stays in the engine, over weight updates too, and goes on with the next call.
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
from common.errors import UserError
from learners.data.samples import Samples, offsets_of
from learners.models import resolve_model_path


@dataclass
class InFlightGroup:
    """The responses to one prompt that are on their way."""

    prompt_id: int
    version: int
    """Weights that were loaded when it came in."""
    requests: list[str]


class RolloutActor:
    """An engine, its weight version and its way of returning ragged batches."""

    def __init__(
        self, name: str, model_path: str, config: RolloutConfig, seed: int = 0, version: int = 0
    ) -> None:
        started = time.perf_counter()
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("OMP_NUM_THREADS", str(config.threads))
        from vllm import LLM

        from actors.weights.vllm import transfer_config

        self.name, self.config, self.version, self._loaded = name, config, version, version
        self.llm = LLM(
            model=resolve_model_path(model_path),
            dtype=config.dtype,
            seed=seed,
            tensor_parallel_size=config.tensor_parallel,
            max_model_len=config.max_model_len,
            max_num_seqs=config.max_sequences,
            gpu_memory_utilization=config.gpu_memory_utilization,
            kv_cache_memory_bytes=int(config.kv_cache_gib * 2**30) if not config.gpus else None,
            enforce_eager=config.enforce_eager,
            # A prompt in two parts winds back the generator of a seeded request, which one on CPU cannot.
            enable_chunked_prefill=None if config.gpus else False,
            logprobs_mode="processed_logprobs",
            weight_transfer_config=transfer_config(),
            skip_tokenizer_init=True,
            disable_log_stats=True,
        )
        self.llm.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": {}})
        self.engine = self.llm.llm_engine
        self.limit = self.engine.model_config.max_model_len
        self._numbers = itertools.count()
        self._finished: dict[str, Any] = {}  # outputs by request that nobody has taken yet
        self._groups: dict[int, InFlightGroup] = {}
        self._dropped: list[int] = []
        self.generate(
            [[0, 1]], [0], Decoding(max_tokens=2), end_token=0
        )  # compiles kernels, so that no timing pays for it
        self._seconds = time.perf_counter() - started

    def ready(self) -> dict[str, Any]:
        """What is loaded: weight version, process id, seconds that starting took."""
        return {"name": self.name, "version": self.version, "pid": os.getpid(), "seconds": self._seconds}

    def generate(
        self,
        prompts: Sequence[list[int]],
        prompt_ids: Sequence[int],
        decoding: Decoding,
        end_token: int,
        n: int = 1,
        seeds: Sequence[int] | None = None,
    ) -> Samples:
        """n responses to each prompt, prompt by prompt. `seeds` holds one per response, or None for the engine's own."""
        self._refuse_long(prompts, decoding)
        requests = []
        for prompt, own in zip(prompts, _split(seeds, len(prompts), n), strict=True):
            requests += self._add(prompt, own, decoding, end_token)
        return self._samples(
            self._outputs(requests), np.repeat(np.asarray(prompt_ids, dtype=np.int64), n), end_token
        )

    def run_groups(
        self,
        new: Sequence[tuple[int, int, list[int], list[int]]],
        decoding: Decoding,
        end_token: int,
        most: int,
        oldest: int,
        seconds: float | None = None,
    ) -> tuple[dict[str, list[int]], Samples | None]:
        """Takes on new groups, each (place that it is known by, prompt id, prompt, seeds of its responses), then goes on
        answering until `most` groups are finished, nothing is left to do or the time is over. Returns the places of groups
        that are done and of those that came in under weights before `oldest` and were dropped, and the former's samples,
        group by group in the order of their places (None if there are none)."""
        if new:
            self._refuse_long([prompt for _, _, prompt, _ in new], decoding)
        for place, prompt_id, prompt, seeds in new:
            requests = self._add(prompt, seeds, decoding, end_token)
            self._groups[place] = InFlightGroup(prompt_id, self.version, requests)
        deadline = time.monotonic() + seconds if seconds is not None else float("inf")
        while len(done := self._done()) < min(most, len(self._groups)) and time.monotonic() < deadline:
            self._step()
        late = [place for place in done if self._groups[place].version < oldest]
        taken = sorted([place for place in done if place not in late][:most])
        self._drop(late)
        groups = [self._groups.pop(place) for place in taken]
        told = {"done": taken, "dropped": self._dropped}
        self._dropped = []
        if not groups:
            return told, None
        outputs = [self._finished.pop(request) for group in groups for request in group.requests]
        ids_B = np.repeat([g.prompt_id for g in groups], [len(g.requests) for g in groups]).astype(np.int64)
        return told, self._samples(outputs, ids_B, end_token)

    def cancel(self) -> None:
        """Drops all groups, for a driver that starts again."""
        self._drop(list(self._groups))
        self._dropped = []

    def _refuse_long(self, prompts: Sequence[list[int]], decoding: Decoding) -> None:
        longest = max(len(p) for p in prompts)
        if longest + decoding.max_tokens > self.limit:
            raise UserError(
                f"a prompt of {longest} tokens and {decoding.max_tokens} for the response are more than the engine's "
                f"{self.limit}; shorten the prompt, lower max_tokens or raise model.context"
            )

    def _done(self) -> list[int]:
        return [p for p, group in self._groups.items() if all(r in self._finished for r in group.requests)]

    def _drop(self, places: Sequence[int]) -> None:
        for place in places:
            requests = self._groups.pop(place).requests
            self.engine.abort_request([r for r in requests if self._finished.pop(r, None) is None])
            self._dropped.append(place)

    def _add(
        self, prompt: list[int], seeds: Sequence[int | None], decoding: Decoding, end_token: int
    ) -> list[str]:
        """Hands one request for each seed to the engine; returns their names."""
        from vllm import SamplingParams

        chosen = decoding.model_dump(include={"temperature", "top_p", "top_k", "min_p", "max_tokens"})
        return [
            self._request(
                prompt,
                SamplingParams(
                    **chosen,
                    stop_token_ids=[end_token],
                    seed=seed,
                    logprobs=0,
                    flat_logprobs=True,
                    detokenize=False,
                ),
            )
            for seed in seeds
        ]

    def _request(self, prompt: list[int], settings: Any) -> str:
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        settings.output_kind = RequestOutputKind.FINAL_ONLY
        name = str(next(self._numbers))
        self.engine.add_request(name, TokensPrompt(prompt_token_ids=list(prompt)), settings)
        return name

    def _step(self) -> None:
        self._finished |= {output.request_id: output for output in self.engine.step() if output.finished}

    def _outputs(self, requests: list[str]) -> list[Any]:
        """The finished outputs of requests, which take whatever else is in the engine along."""
        while not all(request in self._finished for request in requests):
            self._step()
        return [self._finished.pop(request) for request in requests]

    def _samples(self, outputs: list[Any], prompt_ids_B: np.ndarray, end_token: int) -> Samples:
        from actors.weights.vllm import version_spans

        tokens, logprobs, versions, prompt_lengths, lengths, ended = [], [], [], [], [], []
        for output in outputs:
            completion = output.outputs[0]
            prompt, response = output.prompt_token_ids, completion.token_ids
            tokens += [prompt, response]
            logprobs += [np.zeros(len(prompt)), completion.logprobs.logprobs]
            versions.append(np.full(len(prompt), -1))
            versions += [np.full(s.end - s.start, s.version) for s in version_spans(completion, self._loaded)]
            prompt_lengths.append(len(prompt))
            lengths.append(len(prompt) + len(response))
            ended.append(len(response) > 0 and response[-1] == end_token)
        return Samples(
            tokens_N=np.concatenate(tokens).astype(np.int32),
            offsets=offsets_of(lengths),
            prompt_lengths_B=np.array(prompt_lengths, dtype=np.int32),
            logprobs_N=np.concatenate(logprobs).astype(np.float32),
            versions_N=np.concatenate(versions).astype(np.int32),
            prompt_ids_B=prompt_ids_B,
            ended_B=np.array(ended, dtype=bool),
        )

    def update_weights(self, payload: dict[str, Any], version: int, oldest: int = 0) -> float:
        """Takes the weights that a transport sent; returns the seconds it took. Groups that came in under weights before
        `oldest` are dropped; the others are frozen meanwhile, compute their context again and go on. An update that fails
        ends the process: the engine could not be used again."""
        from actors.weights.vllm import apply_update

        started = time.perf_counter()
        self._drop([place for place, group in self._groups.items() if group.version < oldest])
        try:
            apply_update(self.llm, payload, version)
        except RuntimeError as fault:
            traceback.print_exc()
            raise SystemExit(str(fault)) from fault
        self.version = version
        return time.perf_counter() - started

    def prompt_logprobs(self, sequences: Sequence[list[int]]) -> list[np.ndarray]:
        """Log-probability of every token but the first of each sequence, float32, at temperature 1: the sync probe."""
        from vllm import SamplingParams

        settings = {"max_tokens": 1, "prompt_logprobs": 0, "detokenize": False}
        outputs = self._outputs([self._request(list(s), SamplingParams(**settings)) for s in sequences])
        return [
            np.array(
                [row[token].logprob for token, row in zip(s[1:], out.prompt_logprobs[1:], strict=True)],
                dtype=np.float32,
            )
            for s, out in zip(sequences, outputs, strict=True)
        ]


def _split(seeds: Sequence[int] | None, prompts: int, n: int) -> list[Sequence[int | None]]:
    """The seeds of each prompt's n responses."""
    flat: Sequence[int | None] = seeds if seeds is not None else [None] * (prompts * n)
    return [flat[i * n : (i + 1) * n] for i in range(prompts)]
