"""Starts the chat endpoint and keeps it up: used by `hero serve`, by tests and after a run."""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import ray
from ray import serve
from rich.console import Console
from rich.syntax import Syntax

from actors.ray_session import start_ray
from learners.errors import UserError
from serve.config import ServeConfig
from serve.target import Served, resolve

START_SECONDS = 180


@contextmanager
def running(target: Path, config: ServeConfig, address: str | None = None) -> Iterator[tuple[str, Served]]:
    """The endpoint for the length of a block: (base URL ending in /v1, what is served).

    Joins the Ray cluster at `address` (or RAY_ADDRESS), else starts a Ray of its own and ends it afterwards.
    """
    target = target.absolute()
    served = resolve(target)
    with socket.socket() as probe:
        if probe.connect_ex((config.host, config.port)) == 0:
            raise UserError(
                f"port {config.port} on {config.host} is in use; stop what listens there or choose another with --port"
            )
    logs = target / "logs" if (target / "current.json").exists() else Path(tempfile.mkdtemp(prefix="hero-serve-"))
    own = start_ray(address)
    serve.start(
        http_options={"host": config.host, "port": config.port},
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    env = {"OMP_NUM_THREADS": str(config.threads), "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}
    from serve.app import ChatEndpoint

    endpoint = ChatEndpoint.options(  # type: ignore[attr-defined]
        num_replicas=config.replicas,
        ray_actor_options={"num_cpus": 0, "num_gpus": config.gpus, "runtime_env": {"env_vars": env}},
    )
    try:
        serve.run(endpoint.bind(str(target), config, str(logs)), name="hero", route_prefix="/")
        url = f"http://{config.host}:{config.port}"
        _wait_healthy(url)
        yield f"{url}/v1", served
    finally:
        serve.shutdown()
        if own:
            ray.shutdown()


def _wait_healthy(url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass  # the proxy is not listening yet
        time.sleep(0.5)
    raise UserError(
        f"{url}: the endpoint was not healthy after {START_SECONDS} s; see the serve-*.log files of the run"
    )


def serve_forever(target: Path, config: ServeConfig, console: Console) -> None:
    """Serves until Ctrl-C, after telling how to talk to it."""
    with console.status("starting the endpoint") as status, running(target, config) as (url, served):
        status.stop()
        console.print(f"serving [bold]{served.version}[/] as model {config.name!r} at {url}  (Ctrl-C stops)\n")
        body = f'{{"model": "{config.name}", "messages": [{{"role": "user", "content": "What is the capital of France?"}}]}}'
        curl = f"curl {url}/chat/completions -H 'Content-Type: application/json' -d '{body}'"
        console.print(curl, soft_wrap=True, markup=False, highlight=False)
        snippet = f"""
from openai import OpenAI

client = OpenAI(base_url="{url}", api_key="none")
reply = client.chat.completions.create(
    model="{config.name}",
    messages=[{{"role": "user", "content": "What is the capital of France?"}}],
)
print(reply.choices[0].message.content)
"""
        console.print(Syntax(snippet, "python", background_color="default"))
        console.print(f"or chat in a terminal: [bold]hero chat {url}[/]")
        try:
            while True:
                time.sleep(1)
        except KeyboardInterrupt:
            console.print("stopping")
