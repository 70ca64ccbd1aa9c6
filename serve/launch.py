"""Starts the endpoint and keeps it running: used by `hero serve`, by `serve deploy`, by tests and
benchmarks."""

from __future__ import annotations

import logging
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingConfig
from rich.console import Console
from rich.syntax import Syntax

from actors.vllm_arguments import check_arguments
from common.environment import passed_on
from common.errors import FleetError, UserError
from common.files import read_json, write_json
from common.hardware import Choice, choose, device_of, is_slow, slow_warning
from common.network import free_ports, host_address
from common.plugins import child_environment
from common.ray_session import start_ray
from common.run_paths import RunPaths
from serve.addresses import EVERY_ADDRESS, base_url, in_use, listening_address
from serve.config import ServeConfig
from serve.deployment import APPLICATION, ChatEndpoint
from serve.keys import digest
from serve.versions import ModelVersion, current_policy, locate

START_TIMEOUT_S, LOAD_BYTES_PER_S = 300, 100e6
QUIET = {"log_level": "WARNING", "enable_access_log": False}
PYTHON_CLIENT = """
from openai import OpenAI

client = OpenAI(base_url="{url}", api_key="{key}")
reply = client.chat.completions.create(
    model="{model}",
    messages=[{{"role": "user", "content": "What is the capital of France?"}}],
)
print(reply.choices[0].message.content)
"""
CURL = (
    "curl {url}/chat/completions {header}-H 'Content-Type: application/json' -d "
    """'{{"model": "{model}", "messages": """
    """[{{"role": "user", "content": "What is the capital of France?"}}]}}'"""
)


def application(target: Path, config: ServeConfig, logs: Path | None = None) -> Any:
    """The Serve application of a run directory or a model folder.

    Writes RUN/endpoint.json, by which a promotion finds the endpoint. Raises UserError if there is
    nothing to serve, or if an address that other machines can reach has no API keys.
    """
    current_policy(target)
    config = config.model_copy(update={"dtype": dtype_here(config).dtype})
    if listening_address(config.host) == EVERY_ADDRESS and not config.api_keys:
        raise UserError(
            f"serve.host={config.host} can be reached from other machines, so API keys are needed: "
            "make one with `hero key FILE NAME` and give --api-keys FILE"
        )
    if config.api_keys:
        # Replicas have other working directories.
        config = config.model_copy(update={"api_keys": str(Path(config.api_keys).absolute())})
    token = secrets.token_urlsafe(32)
    paths = RunPaths(target)
    if paths.current.exists():
        endpoint = {"url": base_url(config.host, config.port), "token": token}
        write_json(paths.endpoint, endpoint, mode=0o600)
    folder = logs or _log_folder(target)
    return _deployment(config).bind(str(target), config, str(folder), digest(token))


def _log_folder(target: Path) -> Path:
    """Of a run its own; a model folder is left as it is."""
    paths = RunPaths(target)
    return paths.logs if paths.current.exists() else Path(tempfile.mkdtemp(prefix="hero-serve-"))


def dtype_here(config: ServeConfig) -> Choice:
    """The precision of the engines and why; auto is what the machine of the endpoint multiplies fast."""
    return choose(config.dtype, device_of(config.gpus))


def _deployment(config: ServeConfig) -> Any:
    """The deployment with the number of replicas and the resources of the configuration."""
    environment = {
        **passed_on(),
        **child_environment(),
        "OMP_NUM_THREADS": str(config.threads),
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_MAX_N_SEQUENCES": str(config.max_choices),
        # One replica's memory, without a limit: the next request may go to another replica.
        "VLLM_ENABLE_RESPONSES_API_STORE": "0",
        # Developer mode has routes by which any client could pause the engine.
        "VLLM_SERVER_DEV_MODE": "0",
    }
    if config.tensor_parallel == 1:
        # On a CPU vLLM would start a further process for the one worker, to set OMP_NUM_THREADS there,
        # which is set here: half a gigabyte and 20 s of CPU for each engine. The engine itself is in a
        # process of its own either way.
        environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    scaling: dict[str, Any] = {"num_replicas": config.replicas}
    if config.autoscaling:
        scaling = {"autoscaling_config": AutoscalingConfig(**config.autoscaling.model_dump())}
    return ChatEndpoint.options(  # type: ignore[attr-defined]
        **scaling,
        ray_actor_options={
            # The threads are limited by OMP_NUM_THREADS; several replicas may share few cores.
            "num_cpus": 0,
            "num_gpus": config.replica_gpus,
            "runtime_env": {"env_vars": environment},
        },
        logging_config=QUIET,
        # Twice, because the gateway limits answers itself: pages and promotions must still pass a
        # full replica.
        max_ongoing_requests=2 * config.max_ongoing,
        health_check_period_s=5,
        health_check_timeout_s=120,
        graceful_shutdown_timeout_s=5,
    )


def build(arguments: dict[str, Any]) -> Any:
    """What `serve deploy configs/serve.yaml` imports: `target`, and the keys of the serve section
    of a config."""
    return application(Path(arguments.pop("target")).absolute(), ServeConfig.model_validate(arguments))


@contextmanager
def running(
    target: Path, config: ServeConfig, address: str | None = None
) -> Iterator[tuple[str, ModelVersion]]:
    """The endpoint for the duration of a block: (base URL ending in /v1, the served version).

    Joins the Ray cluster at `address` (or RAY_ADDRESS); otherwise starts a Ray of its own and stops
    it afterwards. Raises UserError if the port is in use, FleetError if the endpoint does not
    start.
    """
    target = target.absolute()
    version = current_policy(target)
    if in_use(config.host, config.port):
        raise UserError(
            f"port {config.port} on {config.host} is in use; stop the process that listens there "
            "or choose another port with --port"
        )
    logs = _log_folder(target)
    check_arguments("serve.vllm", config.vllm)
    app = application(target, config, logs)
    proxy_files = tempfile.TemporaryDirectory(prefix="hero-proxy-", ignore_cleanup_errors=True)
    _separate_proxy(Path(proxy_files.name))
    listen = listening_address(config.host)
    own_ray = start_ray(address, logs=logs)
    # It reports every start of Serve in this process.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        try:
            serve.start(http_options={"host": listen, "port": config.port}, logging_config=QUIET)
            serve.run(app, name=APPLICATION, route_prefix="/")
        except (RuntimeError, RayError, TimeoutError) as error:
            raise FleetError(f"the endpoint did not start; see {logs}/*.log ({error})") from error
        url = _reachable_url(target, config, own_ray)
        _wait_healthy(url, logs, start_timeout_s(target, config))
        yield f"{url}/v1", version
    finally:
        RunPaths(target).endpoint.unlink(missing_ok=True)
        serve.shutdown()
        if own_ray:
            ray.shutdown()
        proxy_files.cleanup()


def _reachable_url(target: Path, config: ServeConfig, own_ray: bool) -> str:
    """The URL of the endpoint for this process. RUN/endpoint.json gets the one by which every host of the
    network reaches it, where it listens on all addresses: a promotion may come from another host."""
    url = base_url(config.host, config.port)
    if listening_address(config.host) != EVERY_ADDRESS:
        return url
    public = f"http://{head_address(ray.nodes())}:{config.port}"
    paths = RunPaths(target)
    if paths.endpoint.exists():
        write_json(paths.endpoint, {**read_json(paths.endpoint), "url": public}, mode=0o600)
    return url if own_ray else public


def head_address(nodes: list[dict[str, Any]]) -> str:
    """Of the node where Serve's proxy listens, as the cluster has it; `nodes` as `ray.nodes()` lists them."""
    for node in nodes:
        if node["Alive"] and "node:__internal_head__" in node["Resources"]:
            return str(node["NodeManagerAddress"])
    return host_address()


def _separate_proxy(folder: Path) -> None:
    """Gives Serve's proxies files and side ports of their own, so that several endpoints can run on
    one machine.

    By default all use the same ones. Even the port of the Python proxy, to which HAProxy sends
    requests while it has no replica, would be shared: requests would reach another endpoint.
    """
    metrics, stats, fallback = free_ports(3)
    settings = {
        "HAPROXY_CONFIG_FILE_LOC": folder / "haproxy.cfg",
        "HAPROXY_SOCKET_PATH": folder / "admin.sock",
        "HAPROXY_SERVER_STATE_BASE": folder,
        "HAPROXY_SERVER_STATE_FILE": folder / "server-state",
        "HAPROXY_METRICS_SOCKET_PATH": folder / "metrics.sock",
        "HAPROXY_METRICS_PORT": metrics,
        "HAPROXY_STATS_PORT": stats,
        "FALLBACK_PROXY_HTTP_PORT": fallback,
        # Serve kills a proxy that is not ready within 5 s, which a busy machine does not reach.
        "PROXY_READY_CHECK_TIMEOUT_S": 60,
    }
    for name, value in settings.items():
        os.environ[f"RAY_SERVE_{name}"] = str(value)


def start_timeout_s(target: Path, config: ServeConfig) -> float:
    """How long the replicas may take until they answer."""
    if config.start_timeout_s is not None:
        return config.start_timeout_s
    folders = [current_policy(target).folder]
    folders += [locate(target, model.path).folder for model in config.models.values()]
    size = sum(file.stat().st_size for folder in folders for file in folder.glob("*.safetensors"))
    return START_TIMEOUT_S + size / LOAD_BYTES_PER_S


def _wait_healthy(url: str, logs: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass  # the proxy is not listening yet
        time.sleep(0.5)
    raise FleetError(f"{url}: the endpoint was not healthy after {timeout_s:.0f} s; see {logs}/*.log")


def serve_forever(target: Path, config: ServeConfig, console: Console) -> None:
    """Serves until Ctrl-C, after printing how to use the endpoint."""
    choice = dtype_here(config)
    console.print(f"dtype: {choice.dtype} ({choice.reason})", markup=False, highlight=False, soft_wrap=True)
    if is_slow(config.dtype, device_of(config.gpus)):
        console.print(slow_warning(["serve.dtype"]), markup=False, highlight=False, soft_wrap=True)
    with console.status("starting the endpoint") as status, running(target, config) as (url, version):
        status.stop()
        _print_usage(url, version, config, console)
        try:
            while True:
                time.sleep(1)
        except KeyboardInterrupt:
            console.print("stopping")


def _print_usage(url: str, version: ModelVersion, config: ServeConfig, console: Console) -> None:
    key, header = "none", ""
    if config.api_keys:
        key, header = "KEY", "-H 'Authorization: Bearer KEY' "
    console.print(f"serving [bold]{version.name}[/] as model {config.name!r} at {url}  (Ctrl-C stops)\n")
    curl = CURL.format(url=url, header=header, model=config.name)
    console.print(curl, soft_wrap=True, markup=False, highlight=False)
    python = PYTHON_CLIENT.format(url=url, key=key, model=config.name)
    console.print(Syntax(python, "python", background_color="default"))
    if config.host == EVERY_ADDRESS:
        console.print(f"from other machines: http://{head_address(ray.nodes())}:{config.port}/v1")
    pages = url.removesuffix("/v1")
    console.print(f"in a browser: [bold]{pages}/[/]; in a terminal: [bold]hero chat {url}[/]", soft_wrap=True)
