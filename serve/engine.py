"""One served model of a replica: a vLLM engine, vLLM's own OpenAI application on top of it, and the
version it holds.

Imported only where an engine runs, since it needs vLLM.
"""

from __future__ import annotations

import asyncio
import json
import types
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.async_llm import AsyncLLM

from actors.config import Decoding
from actors.vllm_arguments import command_line
from actors.weights.vllm import receiver_arguments, swap_weights
from common.hardware import device_of, precise
from serve.config import ServeConfig
from serve.gateway import MODEL_ROUTES
from serve.request_stats import joined_versions, request_versions
from serve.responses import VersionedResponses
from serve.versions import ModelVersion

GPU_MEMORY_SHARE = 0.9
"""Of a GPU's memory; the engines of a replica divide it."""


class VersionedLLM(AsyncLLM):
    """Records for each request which versions wrote its tokens, and counts tokens."""

    tokens = 0

    async def generate(self, *args: Any, **kwargs: Any) -> AsyncGenerator[RequestOutput, None]:
        async with aclosing(super().generate(*args, **kwargs)) as outputs:
            async for output in outputs:
                for completion in output.outputs:
                    self.tokens += len(completion.token_ids)
                    _record_versions(completion)
                yield output


def _record_versions(completion: CompletionOutput) -> None:
    versions = request_versions.get()
    if versions is None:  # a request of the replica itself, the canary's
        return
    for span in completion.weight_versions or ():
        if span.version not in versions:
            versions.append(span.version)


def _ignore(_: Any, value: object) -> None:
    """vLLM sets a fingerprint of its own, which says nothing about the weights."""


version_fingerprint = property(lambda _: joined_versions(), _ignore)
"""`system_fingerprint` for vLLM's OpenAI handlers: they read it at the end of an answer, when
`request_versions` is complete."""


class ServedModel:
    """An engine under the name that clients ask for."""

    def __init__(self, name: str, version: ModelVersion) -> None:
        self.name, self.version = name, version
        self.engine: Any = None
        self.app: Any = None
        self.flags: frozenset[str] = frozenset()
        """The options of vLLM's command line, which its messages name."""

    async def start(self, config: ServeConfig, decoding: Decoding, first: bool) -> None:
        """Loads the weights and builds the application. `first`: the first engine of the process,
        which is the only one that vLLM can report Prometheus metrics of."""
        command = engine_arguments(config, self.version.folder, self.name, decoding)
        parser = make_arg_parser(FlexibleArgumentParser())
        self.flags = frozenset(parser._option_string_actions)
        args = parser.parse_args(command)
        args.disable_log_stats = not first
        engine_args = AsyncEngineArgs.from_cli_args(args)
        for name, value in receiver_arguments().items():
            setattr(engine_args, name, value)
        self.engine = VersionedLLM.from_engine_args(engine_args)
        await self.engine.update_weight_version(self.version.name)
        await self.answer([[0, 1]], 2)  # compiles kernels, so that no client waits for it
        await self._build_app(args)

    async def _build_app(self, args: Any) -> None:
        tasks = await self.engine.get_supported_tasks()
        self.app = build_app(args, tasks, self.engine.model_config)
        await init_app_state(self.engine, self.app.state, args, tasks)
        # vLLM's error handler looks for its uvicorn server here.
        self.app.state.server = types.SimpleNamespace()
        # vLLM mounts administration and other protocols too. Those routes are this project's own or
        # are not offered.
        self.app.router.routes[:] = [route for route in self.app.router.routes if route.path in MODEL_ROUTES]
        for handler in (self.app.state.openai_serving_chat, self.app.state.openai_serving_completion):
            kind = type(handler)
            handler.__class__ = type(kind.__name__, (kind,), {"system_fingerprint": version_fingerprint})
        self.app.state.openai_serving_responses.__class__ = VersionedResponses

    async def swap(self, version: ModelVersion) -> None:
        """Takes the weights of another version while requests go on. Raises RuntimeError as
        `swap_weights` does."""
        await swap_weights(self.engine, version.folder, version.name)
        self.version = version

    async def answer(self, prompts: Sequence[list[int]], max_tokens: int) -> list[RequestOutput]:
        """Samples an answer to each prompt at temperature 1, with fixed seeds and with
        log-probabilities."""
        answers = [self._answer(prompt, max_tokens, seed) for seed, prompt in enumerate(prompts)]
        return await asyncio.gather(*answers)

    async def _answer(self, prompt: list[int], max_tokens: int, seed: int) -> RequestOutput:
        sampling = SamplingParams(
            temperature=1.0,
            seed=seed,
            max_tokens=max_tokens,
            logprobs=0,
            flat_logprobs=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        # The end of a prompt that is too long is kept: there the question is.
        room = self.engine.model_config.max_model_len - max_tokens
        request = {"prompt_token_ids": prompt[-room:]}
        async for output in self.engine.generate(request, sampling, f"canary-{uuid.uuid4()}"):
            last = output
        return last


def engine_arguments(
    config: ServeConfig, model: Path, name: str, decoding: Decoding | None = None
) -> list[str]:
    """Command-line arguments of vLLM's server for a served model."""
    values: dict[str, Any] = {
        "model": model,
        "served-model-name": name,
        "dtype": precise(config.dtype),
        "tensor-parallel-size": config.tensor_parallel,
        "max-num-seqs": config.max_sequences,
        "allowed-origins": "[]",
    }
    flags = []
    if config.tensor_parallel > 1:
        # The workers are processes of the replica: its GPUs are on one host, and Ray knows of no others.
        values["distributed-executor-backend"] = "mp"
    if config.max_model_len is not None:
        values["max-model-len"] = config.max_model_len
    if config.gpus:
        # Replicas with a part of a GPU each share its memory as they share the GPU.
        values["gpu-memory-utilization"] = GPU_MEMORY_SHARE * min(1.0, config.gpus) / (1 + len(config.models))
    else:
        values["kv-cache-memory-bytes"] = int(config.kv_cache_gib * 2**30)
        # A prompt that is computed in two parts resets the generator of a seeded request, which
        # fails on CPU.
        flags.append("--no-enable-chunked-prefill")
    if config.is_eager(device_of(config.gpus)):
        flags.append("--enforce-eager")
    if decoding and decoding.model_fields_set:
        values["override-generation-config"] = json.dumps(_generation_config(decoding))
    for key, value in values.items():
        flags += [f"--{key}", str(value)]
    # Last: of an argument that is there twice, the later one counts.
    return flags + command_line(config.vllm)


def _generation_config(decoding: Decoding) -> dict[str, Any]:
    """The settings that the configuration gives, by the names that Hugging Face uses."""
    settings = decoding.model_dump(exclude_unset=True)
    if "max_tokens" in settings:
        settings["max_new_tokens"] = settings.pop("max_tokens")
    return settings
