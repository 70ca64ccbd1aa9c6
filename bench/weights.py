"""Seconds and bytes per second from trained weights to every engine, beside a plain copy of the same bytes.

    python -m bench.weights [3M 30M 300M] [--engines 1 2 4] [--zero 0 3]

Models of random weights in float32; the engines are rollout actors of one thread each. With ZeRO 0 the sender is this process,
with the whole model at hand; with ZeRO 3 two learner ranks, who gather it parameter by parameter. Sending writes to where a
run's learners write; an update is what every engine does until the next step could begin. Medians of five rounds and their
range, after one that is not counted; in each round the copy comes right after.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from actors.config import RolloutConfig
from actors.weights.transport import FilePayload, FileTransport, make_transport
from cluster.fleets.fleet import Fleet
from cluster.fleets.manager import QUIET
from common.ray_session import start_ray
from learners.config import LearnerConfig, ModelConfig
from learners.data.tokenizer import train_tokenizer
from learners.models import build_policy
from learners.rl.config import PPOConfig

SIZES = {"3M": (4, 256), "30M": (10, 512), "300M": (24, 1024)}  # layers, width
ROUNDS = 5


class Ranks:
    """Two learner ranks that share a model by ZeRO-3."""

    def __init__(self, path: Path, folder: Path) -> None:
        settings = LearnerConfig(ranks=2, zero_stage=3)
        arguments = [
            {"rank": rank, "config": settings, "model": ModelConfig(path=str(path))} for rank in range(2)
        ]
        options = {"num_cpus": 0, "runtime_env": {"env_vars": {**QUIET, "OMP_NUM_THREADS": "1"}}}
        self.fleet = Fleet("learner", "actors.learner:LearnerActor", arguments, options, folder / "logs")
        address, port = self.fleet.wait([self.fleet.submit(0, "address")], "address")[0]
        self.fleet.all("join", address, port)
        self.fleet.all("start_ppo", path, None, PPOConfig(advantage="grpo"), None, 0)

    def send(self, transport: FileTransport, version: int) -> FilePayload:
        payload: FilePayload = self.fleet.all("send_weights", transport, version)[0]
        return payload


def measure(name: str, engines: int, zero: int, folder: Path) -> None:
    layers, width = SIZES[name]
    config = ModelConfig(
        layers=layers, width=width, heads=width // 64, kv_heads=width // 128, vocab_size=600, context=128
    )
    tokenizer = train_tokenizer([chr(97 + i) * 3 for i in range(26)], config.vocab_size)
    model = build_policy(config, tokenizer, 0)
    path = folder / name
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    settings = RolloutConfig(threads=1, kv_cache_gib=0.05, max_sequences=16, max_model_len=64)
    arguments = [
        {"name": f"rollout-{i}", "model_path": str(path), "config": settings} for i in range(engines)
    ]
    env = {**QUIET, "OMP_NUM_THREADS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    options = {"num_cpus": 0, "runtime_env": {"env_vars": env}}
    fleet = Fleet("rollout", "actors.rollout:RolloutActor", arguments, options, folder / "logs")
    ranks = Ranks(path, folder) if zero == 3 else None
    transport = make_transport(folder, None)
    sent, updated, copied, size = [], [], [], 0
    try:
        fleet.all("ready")
        for version in range(1, ROUNDS + 2):
            started = time.perf_counter()
            if ranks:
                payload = ranks.send(transport, version)
            else:
                payload = transport.send(
                    ((n, p) for n, p in model.named_parameters() if n != "lm_head.weight"), 0, version
                )
            sent.append(time.perf_counter() - started)
            started = time.perf_counter()
            fleet.all("update_weights", payload, version)
            updated.append(time.perf_counter() - started)
            started = time.perf_counter()
            shutil.copyfile(payload.path, f"{payload.path}.copy")
            copied.append(time.perf_counter() - started)
            size = payload.size
    finally:
        for started_fleet in [fleet, *([ranks.fleet] if ranks else [])]:
            started_fleet.stop()
        transport.close()
    whole = [s + u for s, u in zip(sent, updated, strict=True)]
    cells = " | ".join(
        f"{statistics.median(found[1:]):.3f} ({min(found[1:]):.3f} to {max(found[1:]):.3f})"
        for found in (sent, updated, copied)
    )
    rate = size / statistics.median(whole[1:]) / 2**20
    ratio = statistics.median([w / c for w, c in zip(whole[1:], copied[1:], strict=True)])
    print(
        f"| {name} | {size / 2**20:.0f} | {zero} | {engines} | {cells} | {rate:,.0f} | {ratio:.1f} |",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sizes", nargs="*", default=list(SIZES))
    parser.add_argument("--engines", nargs="*", type=int, default=[1, 2, 4])
    parser.add_argument("--zero", nargs="*", type=int, default=[0, 3], choices=[0, 3])
    given = parser.parse_args()
    start_ray(object_store_gib=0.1)
    print(
        "| model | MiB | ZeRO | engines | send, s | update, s | copy, s | MiB/s to each engine | send + update over copy |"
    )
    print("|---" * 9 + "|")
    with tempfile.TemporaryDirectory() as scratch:
        for chosen in given.sizes:
            for stage, count in itertools.product(given.zero, given.engines):
                measure(chosen, count, stage, Path(scratch))
