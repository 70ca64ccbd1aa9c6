"""A rollout actor: one vLLM engine that samples responses and takes new weights between batches.

`cluster.fleet` makes these into Ray actors. The engine runs in this process (on CPU that is faster than a process
of its own, and a weight update is a function call). Token ids go in and come out; text is the driver's business.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from actors.config import Decoding, RolloutConfig
from learners.errors import UserError
from learners.models import checked
from learners.ragged import Samples, offsets_of


class RolloutActor:
    """An engine, its weight version and its way of returning ragged batches."""

    def __init__(self, name: str, model_path: str, config: RolloutConfig, seed: int = 0, version: int = 0) -> None:
        started = time.perf_counter()
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("OMP_NUM_THREADS", str(config.threads))
        from vllm import LLM

        from actors.weights import transfer_config

        self.name, self.config, self.version, self._loaded = name, config, version, version
        self.llm = LLM(
            model=checked(model_path),
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
        self.limit = self.llm.llm_engine.model_config.max_model_len
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
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        longest = max(len(p) for p in prompts)
        if longest + decoding.max_tokens > self.limit:
            raise UserError(
                f"a prompt of {longest} tokens and {decoding.max_tokens} for the response are more than the engine's "
                f"{self.limit}; shorten the prompt, lower max_tokens or raise model.context"
            )
        settings = [
            SamplingParams(
                temperature=decoding.temperature,
                top_p=decoding.top_p,
                top_k=decoding.top_k,
                min_p=decoding.min_p,
                max_tokens=decoding.max_tokens,
                stop_token_ids=[end_token],
                seed=seed,
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,
            )
            for seed in (seeds if seeds is not None else [None] * (len(prompts) * n))
        ]
        inputs = [TokensPrompt(prompt_token_ids=p) for p in prompts for _ in range(n)]
        outputs = self.llm.generate(inputs, settings, use_tqdm=False)
        return self._samples(outputs, np.repeat(np.asarray(prompt_ids, dtype=np.int64), n), end_token)

    def _samples(self, outputs: list[Any], prompt_ids_B: np.ndarray, end_token: int) -> Samples:
        from actors.weights import version_spans

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

    def update_weights(self, payload: dict[str, Any], version: int) -> float:
        """Takes the weights that a transport sent; returns the seconds it took."""
        from actors.weights import apply_update

        started = time.perf_counter()
        apply_update(self.llm, payload, version)
        self.version = version
        return time.perf_counter() - started

    def prompt_logprobs(self, sequences: Sequence[list[int]]) -> list[np.ndarray]:
        """Log-probability of every token but the first of each sequence, float32, at temperature 1: the sync probe."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        settings = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        inputs = [TokensPrompt(prompt_token_ids=list(s)) for s in sequences]
        outputs = self.llm.generate(inputs, settings, use_tqdm=False)
        return [
            np.array(
                [row[token].logprob for token, row in zip(s[1:], out.prompt_logprobs[1:], strict=True)],
                dtype=np.float32,
            )
            for s, out in zip(sequences, outputs, strict=True)
        ]
