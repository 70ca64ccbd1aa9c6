"""A vLLM engine in this process, driven request by request and step by step.

`actors.rollout` decides which requests there are and when to step; the engine batches whatever is
in it. In this process because on CPU that is faster than a process of its own, and a weight update
is a function call.

vLLM is imported inside functions: its import takes seconds and reads environment variables that
`VLLMEngine.__init__` sets first.
"""

from __future__ import annotations

import itertools
import os
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from actors.config import Decoding, EngineDevices, RolloutConfig
from actors.process_guard import ProcessGuard, clean_up, end_process, record_engine
from actors.vllm_sleep import EngineSleep
from actors.weights.vllm import init_transfer, num_workers, receiver_arguments
from common.hardware import precise, require_device
from learners.model_paths import resolve_model_path


class VLLMEngine:
    """Identifies requests by the ids that `add_...` returns; keeps finished outputs until taken."""

    def __init__(
        self, model_path: str, config: RolloutConfig, seed: int, devices: EngineDevices | None = None
    ) -> None:
        """`devices` None: on the CPU, with a process for each of several workers."""
        devices = devices or EngineDevices(executor="uni" if config.workers == 1 else "mp")
        # Read when vLLM is imported, which `_load` does.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("OMP_NUM_THREADS", str(config.threads))
        if config.workers > 1:
            clean_up()
            if devices.device == "cpu":
                # vLLM would give each worker a NUMA node of its own, of which there may be one.
                os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        if devices.executor == "ray":
            # Its workers are Ray actors with GPUs of their own.
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        else:
            require_device(devices.device)
        settings = {"model": resolve_model_path(model_path), **_arguments(config, seed, devices)}
        self.llm = _load(settings | config.vllm)
        is_own_process = devices.device == "cuda" and devices.executor == "uni"
        self.sleeper = EngineSleep(self.llm, measures=is_own_process)
        init_transfer(self.llm)
        self.has_workers = num_workers(self.llm) > 1
        """Whether the model is in other processes than this one."""
        self.guard = ProcessGuard(config.step_timeout_s)
        if self.has_workers:
            record_engine()
        self.max_model_len: int = self.llm.llm_engine.model_config.max_model_len
        self._request_numbers = itertools.count()
        self._outputs: dict[str, Any] = {}
        """Outputs of finished requests by id."""

    def add_responses(
        self, prompt: list[int], seeds: Sequence[int | None], decoding: Decoding, end_token: int
    ) -> list[str]:
        """Adds a request for one response with each seed; returns their ids."""
        from vllm import SamplingParams

        keys = {"temperature", "top_p", "top_k", "min_p", "max_tokens"}
        sampling = decoding.model_dump(include=keys)
        request_ids = []
        for seed in seeds:
            params = SamplingParams(
                **sampling,
                stop_token_ids=[end_token],
                seed=seed,
                # Log-probabilities of the sampled token alone, as flat lists: cheap to build and to
                # read.
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,
            )
            request_ids.append(self._add(prompt, params))
        return request_ids

    def add_prompt_logprobs(self, tokens: list[int]) -> str:
        """Adds a request for the log-probabilities of `tokens` themselves; returns its id."""
        from vllm import SamplingParams

        return self._add(tokens, SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False))

    def step(self) -> None:
        """One engine step: up to one token for each running request."""
        try:
            with self.guard.during("a step"):
                outputs = self.llm.llm_engine.step()
        except Exception as error:
            if self.has_workers:
                self.end("a step failed", error)
            raise
        for output in outputs:
            if output.finished:
                self._outputs[output.request_id] = output

    def end(self, what: str, error: Exception) -> NoReturn:
        """Ends this process after an error that the engine cannot go on from; the traceback goes to its
        log."""
        traceback.print_exception(error)
        if self.has_workers:
            end_process(f"{what}: {error}")
        # Ends the Ray actor, which may still report the reason.
        raise SystemExit(str(error)) from error

    def are_finished(self, request_ids: Sequence[str]) -> bool:
        return all(request_id in self._outputs for request_id in request_ids)

    def take(self, request_ids: Sequence[str]) -> list[Any]:
        """Removes and returns the outputs of finished requests."""
        return [self._outputs.pop(request_id) for request_id in request_ids]

    def finish(self, request_ids: Sequence[str]) -> list[Any]:
        """Steps until these requests are finished, then takes their outputs. Others advance too."""
        while not self.are_finished(request_ids):
            self.step()
        return self.take(request_ids)

    def remove(self, request_ids: Sequence[str]) -> None:
        """Aborts requests that are running and discards outputs of those that are finished."""
        running = []
        for request_id in request_ids:
            if self._outputs.pop(request_id, None) is None:
                running.append(request_id)
        self.llm.llm_engine.abort_request(running)

    def count_requests(self) -> int:
        """Requests that are running, waiting, or finished and not taken."""
        return self.llm.llm_engine.get_num_unfinished_requests() + len(self._outputs)

    def sleep(self, level: int) -> None:
        """Frees the GPU (`actors.vllm_sleep`). Raises RuntimeError if there are requests."""
        if self.count_requests():
            raise RuntimeError(f"the engine cannot sleep: it works on {self.count_requests()} requests")
        self.sleeper.sleep(level)

    def _add(self, prompt: list[int], params: Any) -> str:
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        self.sleeper.require_awake()
        # The default would build an output at every step, of which only the last is used.
        params.output_kind = RequestOutputKind.FINAL_ONLY
        request_id = str(next(self._request_numbers))
        tokens = TokensPrompt(prompt_token_ids=list(prompt))
        self.llm.llm_engine.add_request(request_id, tokens, params)
        return request_id


def _load(settings: dict[str, Any]) -> Any:
    from vllm import LLM

    return LLM(**settings)


def _arguments(config: RolloutConfig, seed: int, devices: EngineDevices) -> dict[str, Any]:
    """Arguments of `vllm.LLM` for an engine that can receive weights."""
    device = devices.device
    kv_cache_bytes, chunked_prefill = None, None
    if device == "cpu":
        kv_cache_bytes = int(config.kv_cache_gib * 2**30)
        # A prompt that is processed in two parts resets the generator of a seeded request, which
        # fails on CPU.
        chunked_prefill = False
    return {
        "dtype": precise(config.dtype),
        "seed": seed,
        "tensor_parallel_size": config.tensor_parallel,
        "pipeline_parallel_size": config.pipeline_parallel,
        "distributed_executor_backend": devices.executor,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_sequences,
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "kv_cache_memory_bytes": kv_cache_bytes,
        "enforce_eager": config.is_eager(device),
        "enable_chunked_prefill": chunked_prefill,
        # After temperature and filters: the distribution that was sampled from.
        "logprobs_mode": "processed_logprobs",
        **receiver_arguments(),
        # Prompts and responses are token ids: a tokenizer would cost start-up time alone.
        "skip_tokenizer_init": True,
        "disable_log_stats": True,
        # On CPU vLLM refuses it, and takes the calls all the same.
        "enable_sleep_mode": devices.shares_gpus and device == "cuda",
        "load_format": "dummy" if config.load == "dummy" else "auto",
    }
