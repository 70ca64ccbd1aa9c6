"""The Ray Serve deployment: vLLM's own OpenAI application over an engine that holds the run's current policy.

Chat and text completions, streaming, models, health and metrics are vLLM's; this module mounts them, chooses the
weights and says in a header which version answered. A replica that Ray restarts resolves the durable pointer again,
so it never comes back with older weights than the run has.
"""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

from ray import serve

from learners.logs import log_to
from serve.config import ServeConfig
from serve.target import resolve

VERSION_HEADER = b"x-weight-version"


class VersionHeader:
    """ASGI middleware that names the weight version in every response."""

    def __init__(self, app: Any, version: str) -> None:
        self.app, self.version = app, version.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def tell(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), (VERSION_HEADER, self.version)]}
            await send(message)

        await self.app(scope, receive, tell)


@serve.deployment(max_ongoing_requests=256, health_check_period_s=5, graceful_shutdown_timeout_s=5)
@serve.ingress()
class ChatEndpoint:
    """One replica: an AsyncLLM engine and vLLM's FastAPI application."""

    def __init__(self, target: str, config: ServeConfig, logs: str) -> None:
        log_to(Path(logs) / f"serve-{serve.get_replica_context().replica_id.unique_id}.log", "serve")
        self.config = config
        self.served = resolve(Path(target))
        self.engine: Any = None

    async def __serve_build_asgi_app__(self) -> Any:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.entrypoints.launchers.app import build_app
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
        from vllm.utils.argparse_utils import FlexibleArgumentParser
        from vllm.v1.engine.async_llm import AsyncLLM

        from actors.weights import transfer_config

        args = make_arg_parser(FlexibleArgumentParser()).parse_args(self._arguments())
        engine_args = AsyncEngineArgs.from_cli_args(args)
        engine_args.weight_transfer_config = transfer_config()
        self.engine = AsyncLLM.from_engine_args(engine_args)
        tasks = await self.engine.get_supported_tasks()
        app = build_app(args, tasks, self.engine.model_config)
        await init_app_state(self.engine, app.state, args, tasks)
        app.state.server = types.SimpleNamespace()  # vLLM's error handler looks for its uvicorn server here
        app.middleware_stack = None
        app.add_middleware(VersionHeader, version=self.served.version)
        return app

    def _arguments(self) -> list[str]:
        config = self.config
        chosen = {
            "model": self.served.model,
            "served-model-name": config.name,
            "dtype": config.dtype,
            "tensor-parallel-size": config.tensor_parallel,
            "max-model-len": config.max_model_len,
            "kv-cache-memory-bytes": None if config.gpus else int(config.kv_cache_gib * 2**30),
        }
        given = [part for key, value in chosen.items() if value is not None for part in (f"--{key}", str(value))]
        return [*given, "--enforce-eager", "--disable-log-stats", "--max-num-seqs", "64"]

    async def check_health(self) -> None:
        """Raises if the engine is dead; Serve then replaces the replica."""
        if self.engine is not None:
            await self.engine.check_health()
