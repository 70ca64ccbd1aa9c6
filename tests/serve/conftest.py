"""A run directory with versions of a small policy of random weights, which is all that serving
needs of training; and one endpoint for all tests of this folder, started as a user starts it."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import torch
import yaml
from openai import OpenAI

from cluster.config import RunConfig
from cluster.run.directory import RunDirectory
from common.files import write_jsonl
from learners.config import ModelConfig
from learners.data.tokenizer import train_tokenizer
from learners.models import build_policy, scalar_from_policy
from serve.addresses import base_url
from serve.keys import add_key
from serve.versions import set_current
from tests.learners.fixtures import TEXTS
from tests.runs import environment, free_port

MODEL = ModelConfig(
    layers=2, width=64, heads=2, kv_heads=1, vocab_size=400, context=512, tie_embeddings=False
)


def make_run(root: Path, **settings) -> RunDirectory:
    """A run with the versions sft-0 (served), ppo-1 and ppo-2 with similar weights, nan-1 with
    weights that are nan, wide-1 of another shape, and half-1, which passes every check until an
    engine reads its tensors."""
    run = RunDirectory(
        RunConfig(
            run_dir=str(root),
            serve={
                "dtype": "float32",
                "kv_cache_gib": 0.1,
                "keep_versions": 9,
                # Random weights write no end token.
                "decoding": {"max_tokens": 32},
                **settings,
            },
        )
    )
    countries = ("France", "Peru", "Chad", "Iran")
    write_jsonl(run.paths.data("heldout"), [{"prompt": f"What is the capital of {c}?"} for c in countries])
    run.paths.config.write_text(yaml.safe_dump(run.config.model_dump(mode="json")))
    run.paths.write_layout()
    tokenizer = train_tokenizer(TEXTS, MODEL.vocab_size)
    policy = build_policy(MODEL, tokenizer, seed=1)
    with torch.no_grad():
        policy.lm_head.weight[: len(tokenizer.all_special_ids)] = 0  # so that answers are text
    wide = build_policy(MODEL.model_copy(update={"width": 128}), tokenizer, seed=1)
    for version, noise in (
        ("wide-1", 0.0),
        ("sft-0", 0.0),
        ("ppo-1", 0.02),
        ("ppo-2", 0.02),
        ("nan-1", float("nan")),
    ):
        stage, _, number = version.partition("-")
        folder = run.stage(stage) / ("model" if number == "0" else f"model-{number}")
        model = wide if stage == "wide" else policy
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter) * noise * 0.02
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        run.publish(stage, int(number), folder)
    half = root / "half"
    shutil.copytree(root / "sft" / "model", half)
    halve(half / "model.safetensors")
    run.publish("half", 1, half)
    scalar_from_policy(root / "sft" / "model", seed=2).save_pretrained(run.stage("reward") / "model")
    run.paths.promotions.unlink()
    set_current(root, "sft-0", who="test", why="start")
    return run


def halve(file: Path) -> None:
    """Turns a weight file into one of 4-bit numbers with the same names and shapes: read as bytes,
    its tensors are half as wide."""
    with open(file, "rb") as content:
        header = json.loads(content.read(int.from_bytes(content.read(8), "little")))
    size = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            length = math.prod(tensor["shape"]) // 2
            tensor |= {"dtype": "F4", "data_offsets": [size, size + length]}
            size += length
    text = json.dumps(header).encode()
    file.unlink()
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))


@dataclass
class Endpoint:
    root: Path
    url: str
    key: str
    process: subprocess.Popen

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}

    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, timeout=120)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, headers=self.headers, timeout=60)

    def post(self, path: str, body) -> httpx.Response:
        return httpx.post(self.url + path, headers=self.headers, json=body, timeout=120)

    def status(self) -> dict:
        return self.get("/status.json").raise_for_status().json()

    def metric(self, name: str) -> float:
        """Sum of a Prometheus metric over replicas."""
        rows = [line for line in self.get("/metrics").text.splitlines() if line.startswith(name)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in rows)


def wait_for(condition, seconds: float, what: str):
    """Waits until the condition gives a true value, and returns it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if value := condition():
                return value
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"{what}: not within {seconds} s")


def start(root: Path, *arguments: str, host: str = "127.0.0.1", with_key: bool = True) -> Endpoint:
    """`hero serve` in a process of its own, by default with an API key."""
    port = free_port()
    command = [sys.executable, "-m", "cluster.cli", "serve", str(root), f"--port={port}", f"--host={host}"]
    key = "none"
    if with_key:
        keys = root.parent / "keys"
        keys.unlink(missing_ok=True)
        key = add_key(keys, "tester")
        command.append(f"--api-keys={keys}")
    command += arguments
    log = open(root.parent / "serve.log", "w")  # noqa: SIM115
    process = subprocess.Popen(command, stdout=log, stderr=log, env=environment())
    endpoint = Endpoint(root, base_url(host, port), key, process)

    def ready() -> bool:
        assert process.poll() is None, Path(log.name).read_text()[-3000:]
        return "in a browser" in Path(log.name).read_text()

    wait_for(ready, 500, "hero serve")
    return endpoint


def stop(endpoint: Endpoint) -> None:
    endpoint.process.send_signal(signal.SIGTERM)
    assert endpoint.process.wait(timeout=90) == 0


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> RunDirectory:
    """A run directory for tests that start no endpoint; read only."""
    return make_run(tmp_path_factory.mktemp("files") / "run")


_shared: list[Endpoint] = []
"""The endpoint of the fixture below while it runs."""


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem):
    """Stops the shared endpoint after the last test of this folder: no scope of a fixture is that of a
    folder that is no package, and four engines would stay beside all other tests."""
    is_last = nextitem is None or nextitem.path.parent != Path(__file__).parent
    if is_last and _shared:
        stop(_shared.pop())


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory):
    """Two replicas, each with the current policy and the SFT model."""
    root = tmp_path_factory.mktemp("serve") / "run"
    if trained := os.environ.get("HERO_TEST_RUN"):  # for screenshots of a trained policy
        shutil.copytree(trained, root, ignore=shutil.ignore_patterns("wandb", "feedback"))
    else:
        make_run(root)
    _shared.append(
        start(
            root,
            "--replicas=2",
            "serve.models.sft.path=sft",
            "serve.max_body_kib=64",
            "serve.max_choices=4",
            "serve.vllm={enable_auto_tool_choice: true, tool_call_parser: hermes}",
        )
    )
    yield _shared[0]
    if _shared:  # the tests ended early
        stop(_shared.pop())
