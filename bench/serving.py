"""Throughput and time to first token through `hero serve`, against `vllm serve` of the same model.

    python -m bench.serving MODEL_FOLDER [rounds] [requests/s ...]

Both servers are up together with the same engine arguments and take turns; the load is vLLM's own benchmark client
(`vllm bench serve`, chat completions, streaming, 48 random tokens in, 64 out). Rates: `inf` sends everything at once,
a number sends at that mean rate whatever the answers do (open loop, Poisson). Prints the median over rounds, after a
warm-up that is not counted.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from serve.config import ServeConfig
from serve.engine import engine_arguments
from serve.launch import running

PORTS = {"vllm serve": 8031, "hero serve": 8032}
KEYS = {
    "output tokens/s": "output_throughput",
    "TTFT ms": "median_ttft_ms",
    "P99 TTFT ms": "p99_ttft_ms",
    "between tokens ms": "median_itl_ms",
    "failed": "failed",
}
# The `vllm` command asks for the version of a package called vllm, which the CPU build is not.
VLLM = [
    sys.executable,
    "-c",
    "import importlib.metadata as m; real = m.version; m.version = lambda name: "
    "'0.32.0+cpu' if name == 'vllm' else real(name); from vllm.entrypoints.cli.main import main; main()",
]


def load(port: int, model: Path, rate: str, requests: int) -> dict[str, float]:
    """One run of vLLM's benchmark client; its figures."""
    with tempfile.TemporaryDirectory() as folder:
        client = [
            *VLLM,
            "bench",
            "serve",
            "--backend",
            "openai-chat",
            "--endpoint",
            "/v1/chat/completions",
            "--port",
            str(port),
            "--model",
            "hero",
            "--tokenizer",
            str(model),
            "--dataset-name",
            "random",
            "--random-input-len",
            "48",
            "--random-output-len",
            "64",
            "--num-prompts",
            str(requests),
            "--request-rate",
            rate,
            "--ignore-eos",
            "--disable-tqdm",
            "--save-result",
            "--result-dir",
            folder,
            "--temperature",
            "1",
        ]
        subprocess.run(client, check=True, capture_output=True, timeout=300)
        return json.loads(next(Path(folder).glob("*.json")).read_text())


def main() -> None:
    model, rounds, rates = (
        Path(sys.argv[1]).absolute(),
        int((sys.argv[2:] or ["3"])[0]),
        sys.argv[3:] or ["inf", "20"],
    )
    config = ServeConfig(port=PORTS["hero serve"])
    command = [*VLLM, "serve", *engine_arguments(config, model, "hero"), "--port", str(PORTS["vllm serve"])]
    log = open(Path(tempfile.gettempdir()) / "bench-serving-vllm.log", "w")  # noqa: SIM115
    env = {
        **os.environ,
        "OMP_NUM_THREADS": str(config.threads),
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }
    plain = subprocess.Popen(command, stdout=log, stderr=log, env=env)
    try:
        with running(model, config):
            while not _up(PORTS["vllm serve"]):
                assert plain.poll() is None, f"vllm serve ended; see {log.name}"
                time.sleep(1)
            for port in PORTS.values():
                load(port, model, "inf", 64)
            for rate in rates:
                found = {name: [] for name in PORTS}
                for _ in range(rounds):
                    for name, port in PORTS.items():
                        found[name].append(
                            load(port, model, rate, 256 if rate == "inf" else int(float(rate) * 15))
                        )
                print(f"\n{rate} requests/s, median of {rounds}")
                for title, key in KEYS.items():
                    ours, theirs = (
                        statistics.median(r[key] for r in found[n]) for n in ("hero serve", "vllm serve")
                    )
                    ratio = f"{ours / theirs:.2f}" if theirs else ""
                    print(f"  {title:18} hero {ours:9.1f}   vllm {theirs:9.1f}   {ratio}", flush=True)
    finally:
        plain.terminate()
        plain.wait(30)


def _up(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


if __name__ == "__main__":
    main()
