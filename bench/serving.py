"""Throughput and time to first token of `hero serve`, beside `vllm serve` of the same model.

    python -m bench.serving MODEL_FOLDER [rounds] [requests/s ...]

Both servers run at the same time with the same engine arguments and take turns. The load is vLLM's own
benchmark client (`vllm bench serve`, chat completions, streaming, 48 random tokens in, 64 out). Rates: `inf`
sends everything at once, a number sends at that mean rate whatever the answers do (open loop, Poisson).
Prints the median over rounds, after a warm-up that is not counted.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from bench.common import start_parser
from serve.config import ServeConfig
from serve.engine import engine_arguments
from serve.launch import running

PORTS = {"vllm serve": 8031, "hero serve": 8032}
METRICS = {
    "output tokens/s": "output_throughput",
    "TTFT ms": "median_ttft_ms",
    "P99 TTFT ms": "p99_ttft_ms",
    "between tokens ms": "median_itl_ms",
    "failed": "failed",
}
"""Title and the client's own name of each printed metric."""
# The `vllm` command reads the version of a package called vllm, which the CPU build is not.
VLLM = [
    sys.executable,
    "-c",
    "import importlib.metadata as m; real = m.version; m.version = lambda name: "
    "'0.32.0+cpu' if name == 'vllm' else real(name); from vllm.entrypoints.cli.main import main; main()",
]
CLIENT = [*VLLM, "bench", "serve", "--backend", "openai-chat", "--endpoint", "/v1/chat/completions"]
WARM_UP_REQUESTS = 64
BURST_REQUESTS = 256
SECONDS_PER_RATE = 15


def run_client(port: int, model: Path, rate: str, requests: int) -> dict[str, float]:
    """One run of vLLM's benchmark client; its metrics by the client's names."""
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "--port": port,
            "--model": "hero",
            "--tokenizer": model,
            "--dataset-name": "random",
            "--random-input-len": 48,
            "--random-output-len": 64,
            "--num-prompts": requests,
            "--request-rate": rate,
            "--temperature": 1,
            "--result-dir": folder,
        }
        command = [*CLIENT, "--ignore-eos", "--disable-tqdm", "--save-result"]
        for name, value in options.items():
            command += [name, str(value)]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        metrics: dict[str, float] = json.loads(next(Path(folder).glob("*.json")).read_text())
        return metrics


@contextmanager
def vllm_server(config: ServeConfig, model: Path) -> Iterator[None]:
    """`vllm serve` with the engine arguments of `hero serve`, until the block ends."""
    arguments = engine_arguments(config, model, "hero")
    command = [*VLLM, "serve", *arguments, "--port", str(PORTS["vllm serve"])]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(config.threads),
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }
    # Output goes to a file: a pipe that nobody reads would fill up and stop the server.
    with open(Path(tempfile.gettempdir()) / "bench-serving-vllm.log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            while not is_healthy(PORTS["vllm serve"]):
                assert server.poll() is None, f"vllm serve ended; see {log.name}"
                time.sleep(1)
            yield
        finally:
            server.terminate()
            server.wait(30)


def is_healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def compare(model: Path, rate: str, rounds: int) -> None:
    """Prints the medians of both servers at one rate."""
    # Enough requests for a steady state at a rate; a burst has none.
    requests = BURST_REQUESTS
    if rate != "inf":
        requests = int(float(rate) * SECONDS_PER_RATE)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in PORTS}
    for _ in range(rounds):
        for name, port in PORTS.items():
            results[name].append(run_client(port, model, rate, requests))
    print(f"\n{rate} requests/s, median of {rounds}")
    for title, metric in METRICS.items():
        hero = statistics.median(result[metric] for result in results["hero serve"])
        vllm = statistics.median(result[metric] for result in results["vllm serve"])
        ratio = ""
        if vllm:
            ratio = f"{hero / vllm:.2f}"
        print(f"  {title:18} hero {hero:9.1f}   vllm {vllm:9.1f}   {ratio}", flush=True)


def main() -> None:
    parser = start_parser(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("rounds", type=int, nargs="?", default=3)
    parser.add_argument("rates", nargs="*", default=["inf", "20"])
    args = parser.parse_args()
    model = args.model.absolute()
    config = ServeConfig(port=PORTS["hero serve"], dtype="float32")
    with vllm_server(config, model), running(model, config):
        for port in PORTS.values():
            run_client(port, model, "inf", WARM_UP_REQUESTS)
        for rate in args.rates:
            compare(model, rate, args.rounds)


if __name__ == "__main__":
    main()
