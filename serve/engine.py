"""One served model of a replica: a vLLM engine, vLLM's own OpenAI application over it, and the version it holds.

Imported only where an engine runs: it needs vLLM.
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
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.async_llm import AsyncLLM

from actors.config import Decoding
from actors.weights.vllm import swap_weights, transfer_config
from serve.config import ServeConfig
from serve.gateway import ROUTES, WRITTEN
from serve.versions import ModelVersion


class VersionedLLM(AsyncLLM):
    """Notes for each request which versions wrote its tokens, and counts tokens."""

    tokens = 0

    async def generate(self, *args: Any, **kwargs: Any) -> AsyncGenerator[RequestOutput, None]:
        written = WRITTEN.get()
        async with aclosing(super().generate(*args, **kwargs)) as outputs:
            async for output in outputs:
                for completion in output.outputs:
                    self.tokens += len(completion.token_ids)
                    if written is not None:
                        spans = [span.version for span in completion.weight_versions or ()]
                        written.extend(dict.fromkeys(v for v in spans if v not in written))
                yield output


class ServedModel:
    """An engine under the name that clients ask for."""

    def __init__(self, name: str, served: ModelVersion) -> None:
        self.name, self.served = name, served
        self.engine: Any = None
        self.app: Any = None

    async def start(self, config: ServeConfig, decoding: Decoding, first: bool) -> None:
        """Loads the weights; vLLM's Prometheus metrics are those of the first engine of a process."""
        given = engine_arguments(config, self.served.model, self.name, decoding)
        args = make_arg_parser(FlexibleArgumentParser()).parse_args(given)
        args.disable_log_stats = not first
        engine_args = AsyncEngineArgs.from_cli_args(args)
        engine_args.weight_transfer_config = transfer_config()
        self.engine = VersionedLLM.from_engine_args(engine_args)
        await self.engine.update_weight_version(self.served.version)
        await self.answer([[0, 1]], 2)  # compiles kernels, so that no client waits for it
        tasks = await self.engine.get_supported_tasks()
        self.app = build_app(args, tasks, self.engine.model_config)
        await init_app_state(self.engine, self.app.state, args, tasks)
        self.app.state.server = (
            types.SimpleNamespace()
        )  # vLLM's error handler looks for its uvicorn server here
        # What else vLLM mounts is either ours to answer or nobody's business.
        self.app.router.routes[:] = [route for route in self.app.router.routes if route.path in ROUTES]
        for serving in (self.app.state.openai_serving_chat, self.app.state.openai_serving_completion):
            # vLLM stamps this on an answer's end, when WRITTEN is complete.
            kind = type(serving)
            fingerprint = property(lambda _: ",".join(WRITTEN.get() or ()), lambda _, value: None)
            serving.__class__ = type(kind.__name__, (kind,), {"system_fingerprint": fingerprint})

    async def swap(self, served: ModelVersion) -> None:
        """Takes the weights of another version while requests go on; see `swap_weights` for what can go wrong."""
        await swap_weights(self.engine, served.model, served.version)
        self.served = served

    async def answer(self, prompts: Sequence[list[int]], max_tokens: int) -> list[RequestOutput]:
        """Samples an answer to each prompt at temperature 1, with seeds and log-probabilities: the canary's question."""
        return await asyncio.gather(*(self._answer(p, max_tokens, seed) for seed, p in enumerate(prompts)))

    async def _answer(self, prompt: list[int], max_tokens: int, seed: int) -> RequestOutput:
        settings = SamplingParams(
            temperature=1.0,
            seed=seed,
            max_tokens=max_tokens,
            logprobs=0,
            flat_logprobs=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        fitting = prompt[-(self.engine.model_config.max_model_len - max_tokens) :]
        async for output in self.engine.generate(
            {"prompt_token_ids": fitting}, settings, f"canary-{uuid.uuid4()}"
        ):
            last = output
        return last


def engine_arguments(
    config: ServeConfig, model: Path, name: str, decoding: Decoding | None = None
) -> list[str]:
    """Command-line arguments of vLLM's server for a served model."""
    defaults = decoding.model_dump(exclude_unset=True) if decoding else {}
    if "max_tokens" in defaults:
        defaults["max_new_tokens"] = defaults.pop("max_tokens")
    chosen = {
        "model": model,
        "served-model-name": name,
        "dtype": config.dtype,
        "tensor-parallel-size": config.tensor_parallel,
        "max-model-len": config.max_model_len,
        "max-num-seqs": config.max_sequences,
        "kv-cache-memory-bytes": None if config.gpus else int(config.kv_cache_gib * 2**30),
        "gpu-memory-utilization": 0.9 / (1 + len(config.models)) if config.gpus else None,
        "override-generation-config": json.dumps(defaults) if defaults else None,
        "allowed-origins": "[]",
    }
    given = [part for key, value in chosen.items() if value is not None for part in (f"--{key}", str(value))]
    return [
        *given,
        *(["--enforce-eager"] if config.enforce_eager else []),
        # A prompt in two parts winds back the generator of a seeded request, which one on CPU cannot.
        *([] if config.gpus else ["--no-enable-chunked-prefill"]),
    ]
