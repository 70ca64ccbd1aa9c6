"""Seconds and bytes per second from trained weights to every engine by each transport, beside a plain file
copy of the same bytes.

    python -m bench.weight_sync [3M 30M 300M] [--transports file object_store broadcast] [--engines 1 2]
                                [--zero 2 3] [--bucket-mib 64]
                                [--address HEAD:PORT --learner-host IP --engine-host IP]

Models of random weights in float32, two learner ranks with one thread each, engines that are rollout actors
of one thread each. "Sync" is the time from the call until every engine could take its next step: gathering,
transfer, digests on both sides, and loading into the engines. "Copy" is a plain copy of a file of the same
size in shared memory right after. Medians of five rounds and their range, after one round that is not
counted. With two hosts of a Ray cluster the learners are on one and the engines on the other, which both see
the folder for temporary files (TMPDIR), or at least the models in it.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from actors.config import RolloutConfig, SyncConfig
from actors.weights.transport import FileTransport, ObjectStoreTransport, weights_directory
from bench.common import print_header, print_row, spread, start_parser
from cluster.fleets.learner_fleet import LearnerFleet
from cluster.fleets.manager import QUIET
from cluster.fleets.rollout_fleet import RolloutFleet
from cluster.rl.weight_routes import BroadcastRoute, BucketRoute, WeightRoute
from common.ray_session import start_ray
from learners.config import LearnerConfig, ModelConfig
from learners.data.tokenizer import train_tokenizer
from learners.models import build_policy
from learners.rl.config import PPOConfig

SIZES = {"3M": (4, 256), "30M": (10, 512), "300M": (24, 1024)}  # layers, width
ROUNDS = 5
KINDS = ("file", "object_store", "broadcast")
COLUMNS = ("model", "MiB", "ZeRO", "engines", "transport", "sync, s", "copy, s", "MiB/s", "sync over copy")


@dataclass
class Timings:
    """Seconds of each counted round."""

    sync: list[float] = field(default_factory=list)
    copy: list[float] = field(default_factory=list)


def actor_options(host: str | None, **env: str) -> dict[str, Any]:
    """Of an actor on the host with this address, or anywhere."""
    options = {"num_cpus": 0, "runtime_env": {"env_vars": {**QUIET, "OMP_NUM_THREADS": "1", **env}}}
    if host:
        options["resources"] = {f"node:{host}": 0.001}
    return options


def start_engines(model: Path, count: int, folder: Path, host: str | None) -> RolloutFleet:
    settings = RolloutConfig(
        dtype="float32", threads=1, kv_cache_gib=0.05, max_sequences=16, max_model_len=64
    )
    arguments = []
    for i in range(count):
        arguments.append({"name": f"rollout-{i}", "model_path": str(model), "config": settings})
    options = actor_options(host, VLLM_ENABLE_V1_MULTIPROCESSING="0")
    return RolloutFleet("rollout", "actors.rollout:RolloutActor", arguments, options, folder / "logs")


def start_learners(model: Path, zero: int, folder: Path, host: str | None) -> LearnerFleet:
    """Two learner ranks."""
    settings, model_config = (
        LearnerConfig.model_validate({"ranks": 2, "zero_stage": zero, "dtype": "float32"}),
        ModelConfig(path=str(model)),
    )
    arguments = [{"rank": rank, "config": settings, "model": model_config} for rank in range(2)]
    target = "actors.learner:LearnerActor"
    fleet = LearnerFleet("learner", target, arguments, actor_options(host), folder / "logs")
    fleet.join()
    fleet.wait(
        fleet.submit_start_ppo(model, None, PPOConfig(advantage="grpo", dtype="float32"), None, 0),
        "start_ppo",
    )
    return fleet


def save_random_model(name: str, path: Path) -> int:
    """Returns the bytes of its weights."""
    layers, width = SIZES[name]
    shape = {"layers": layers, "width": width, "heads": width // 64, "kv_heads": width // 128}
    config = ModelConfig(vocab_size=600, context=128, **shape)
    tokenizer = train_tokenizer([chr(97 + i) * 3 for i in range(26)], config.vocab_size)
    model = build_policy(config, tokenizer, 0)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    # A tied head is the embedding, and counted once.
    return sum(parameter.nbytes for parameter in model.parameters())


def make_route(
    kind: str, learners: LearnerFleet, rollouts: RolloutFleet, bucket_mib: int, folder: Path
) -> WeightRoute:
    if kind == "broadcast":
        config = SyncConfig(bucket_mib=bucket_mib)
        return BroadcastRoute(learners, rollouts, config)
    if kind == "file":
        transport = FileTransport(weights_directory(folder, None), bucket_mib << 20)
        return BucketRoute(learners, rollouts, transport)
    return BucketRoute(learners, rollouts, ObjectStoreTransport(bucket_mib << 20))


def measure(route: WeightRoute, copied: Path, versions: Iterator[int]) -> Timings:
    """Rounds of one transport; `copied` is a file of the size of the weights."""
    timings = Timings()
    for number in range(ROUNDS + 1):
        started = time.perf_counter()
        route.push(next(versions), 0)
        synced = time.perf_counter()
        shutil.copyfile(copied, f"{copied}.copy")
        ended = time.perf_counter()
        os.unlink(f"{copied}.copy")
        if number:  # the first round loads code, touches fresh pages and makes links
            timings.sync.append(synced - started)
            timings.copy.append(ended - synced)
    return timings


def compare(name: str, zero: int, engines: int, arguments: argparse.Namespace, folder: Path) -> None:
    """Rows of one model, ZeRO stage and number of engines."""
    path = folder / name
    size = save_random_model(name, path)
    rollouts, learners = start_engines(path, engines, folder, arguments.engine_host), None
    copied = weights_directory(folder, None) / "copied"
    copied.parent.mkdir(exist_ok=True)
    copied.write_bytes(os.urandom(1 << 20) * (size >> 20) + bytes(size & 0xFFFFF))
    versions = itertools.count(1)
    try:
        learners = start_learners(path, zero, folder, arguments.learner_host)
        rollouts.ready()
        for kind in arguments.transports:
            route = make_route(kind, learners, rollouts, arguments.bucket_mib, folder)
            timings = measure(route, copied, versions)
            ratios = [sync / copy for sync, copy in zip(timings.sync, timings.copy, strict=True)]
            rate = f"{size / 2**20 / median(timings.sync):,.0f}"
            figures = [spread(timings.sync), spread(timings.copy), rate, f"{median(ratios):.1f}"]
            print_row([name, f"{size / 2**20:.0f}", zero, engines, kind, *figures])
    finally:
        rollouts.stop()
        if learners is not None:
            learners.stop()
        shutil.rmtree(copied.parent, ignore_errors=True)


def main() -> None:
    parser = start_parser(__doc__)
    parser.add_argument("sizes", nargs="*", default=list(SIZES))
    parser.add_argument("--transports", nargs="*", default=list(KINDS), choices=KINDS)
    parser.add_argument("--engines", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--zero", nargs="*", type=int, default=[2, 3], choices=[0, 1, 2, 3])
    parser.add_argument("--bucket-mib", type=int, default=64)
    parser.add_argument("--address")
    parser.add_argument("--learner-host")
    parser.add_argument("--engine-host")
    arguments = parser.parse_args()
    start_ray(arguments.address, object_store_gib=1.0)
    print_header(COLUMNS)
    with tempfile.TemporaryDirectory() as scratch:
        cases = itertools.product(arguments.sizes, arguments.zero, arguments.engines)
        for name, zero, engines in cases:
            compare(name, zero, engines, arguments, Path(scratch))


if __name__ == "__main__":
    main()
