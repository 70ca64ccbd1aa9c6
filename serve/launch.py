"""Starts the endpoint and keeps it up: used by `hero serve`, by `serve deploy`, by tests and benchmarks."""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import ray
from ray import serve
from ray.serve.config import AutoscalingConfig
from rich.console import Console
from rich.syntax import Syntax

from common.errors import FleetError, UserError
from common.files import write_json
from common.ray_session import start_ray
from serve.config import ServeConfig
from serve.deployment import APPLICATION, ChatEndpoint
from serve.keys import digest
from serve.versions import ModelVersion, resolve

START_SECONDS = 300
QUIET = {"log_level": "WARNING", "enable_access_log": False}


def application(target: Path, config: ServeConfig) -> Any:
    """The Serve application of a run or a model folder. Writes RUN/endpoint.json, with which a promotion finds it."""
    resolve(target)
    local = config.host == "localhost" or ipaddress.ip_address(config.host).is_loopback
    if not local and not config.api_keys:
        raise UserError(
            f"serve.host={config.host} can be reached from elsewhere, so API keys are needed: make one with `hero key FILE "
            "NAME` and give --api-keys FILE"
        )
    config = config.model_copy(update={"api_keys": config.api_keys and str(Path(config.api_keys).absolute())})
    token = secrets.token_urlsafe(32)
    is_run = (target / "current.json").exists()
    if is_run:
        found = {"url": f"http://{config.host}:{config.port}", "token": token}
        write_json(target / "endpoint.json", found, mode=0o600)
    logs = target / "logs" if is_run else Path(tempfile.mkdtemp(prefix="hero-serve-"))
    env = {
        "OMP_NUM_THREADS": str(config.threads),
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_MAX_N_SEQUENCES": str(config.max_choices),
        "VLLM_SERVER_DEV_MODE": "0",
    }
    scaling = config.autoscaling and AutoscalingConfig(**config.autoscaling.model_dump())
    deployment = ChatEndpoint.options(  # type: ignore[attr-defined]
        **({"autoscaling_config": scaling} if scaling else {"num_replicas": config.replicas}),
        ray_actor_options={"num_cpus": 0, "num_gpus": config.gpus, "runtime_env": {"env_vars": env}},
        logging_config=QUIET,
        max_ongoing_requests=2
        * config.max_ongoing,  # the gate limits answers; pages and promotions still get through
        health_check_period_s=5,
        health_check_timeout_s=120,
        graceful_shutdown_timeout_s=5,
    )
    return deployment.bind(str(target), config, str(logs), digest(token))


def build(arguments: dict[str, Any]) -> Any:
    """What `serve deploy configs/serve.yaml` imports: `target`, and the keys of the serve section of a config."""
    return application(Path(arguments.pop("target")).absolute(), ServeConfig.model_validate(arguments))


@contextmanager
def running(
    target: Path, config: ServeConfig, address: str | None = None
) -> Iterator[tuple[str, ModelVersion]]:
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
    app = application(target, config)
    files = tempfile.TemporaryDirectory(prefix="hero-proxy-", ignore_cleanup_errors=True)
    _own_proxy(Path(files.name))
    own = start_ray(address)
    serve.start(http_options={"host": config.host, "port": config.port}, logging_config=QUIET)
    try:
        try:
            serve.run(app, name=APPLICATION, route_prefix="/")
        except RuntimeError as fault:
            raise FleetError(
                f"the endpoint did not start; see the serve-*.log files of the run ({fault})"
            ) from fault
        url = f"http://{config.host}:{config.port}"
        _wait_healthy(url)
        yield f"{url}/v1", served
    finally:
        (target / "endpoint.json").unlink(missing_ok=True)
        serve.shutdown()
        if own:
            ray.shutdown()
        files.cleanup()


def _own_proxy(folder: Path) -> None:
    """Lets several endpoints live on one machine: files and side ports of Serve's proxies are the same otherwise. The port
    of the Python proxy, to which HAProxy turns while it knows no replica, would even be shared, and with it the requests."""
    with ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(3)]
        for probe in held:
            probe.bind(("", 0))
        metrics, stats, fallback = (probe.getsockname()[1] for probe in held)
    for name, value in (
        ("HAPROXY_CONFIG_FILE_LOC", folder / "haproxy.cfg"),
        ("HAPROXY_SOCKET_PATH", folder / "admin.sock"),
        ("HAPROXY_SERVER_STATE_BASE", folder),
        ("HAPROXY_SERVER_STATE_FILE", folder / "server-state"),
        ("HAPROXY_METRICS_SOCKET_PATH", folder / "metrics.sock"),
        ("HAPROXY_METRICS_PORT", metrics),
        ("HAPROXY_STATS_PORT", stats),
        ("FALLBACK_PROXY_HTTP_PORT", fallback),
    ):
        os.environ[f"RAY_SERVE_{name}"] = str(value)


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
        console.print(
            f"serving [bold]{served.version}[/] as model {config.name!r} at {url}  (Ctrl-C stops)\n"
        )
        key = "-H 'Authorization: Bearer KEY' " if config.api_keys else ""
        body = f'{{"model": "{config.name}", "messages": [{{"role": "user", "content": "What is the capital of France?"}}]}}'
        curl = f"curl {url}/chat/completions {key}-H 'Content-Type: application/json' -d '{body}'"
        console.print(curl, soft_wrap=True, markup=False, highlight=False)
        snippet = f"""
from openai import OpenAI

client = OpenAI(base_url="{url}", api_key="{"KEY" if config.api_keys else "none"}")
reply = client.chat.completions.create(
    model="{config.name}",
    messages=[{{"role": "user", "content": "What is the capital of France?"}}],
)
print(reply.choices[0].message.content)
"""
        console.print(Syntax(snippet, "python", background_color="default"))
        console.print(
            f"in a browser: [bold]{url.removesuffix('/v1')}/[/]; in a terminal: [bold]hero chat {url}[/]"
        )
        try:
            while True:
                time.sleep(1)
        except KeyboardInterrupt:
            console.print("stopping")
