"""Seconds and bytes per second from trained weights to every engine, beside a plain file copy.

    python -m bench.weights [3M 30M 300M] [--engines 1 2 4] [--zero 0 3]

Models of random weights in float32; the engines are rollout actors of one thread each. With ZeRO 0
the sender is this process, which holds the whole model; with ZeRO 3 it is two learner ranks, which
gather it parameter by parameter. "Send" writes the file where a run's learners write it; "update"
is the time until every engine could take its next step; "copy" is a plain copy of that file right
after. Medians of five rounds and their range, after one round that is not counted.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from actors.config import RolloutConfig
from actors.weights.transport import FilePayload, FileTransport, WeightPayload, make_transport
from bench.common import print_header, print_row, spread, start_parser
from cluster.fleets.learner_fleet import LearnerFleet
from cluster.fleets.manager import QUIET
from cluster.fleets.rollout_fleet import RolloutFleet
from common.ray_session import start_ray
from learners.config import LearnerConfig, ModelConfig
from learners.data.tokenizer import train_tokenizer
from learners.models import build_policy
from learners.rl.config import PPOConfig

SIZES = {"3M": (4, 256), "30M": (10, 512), "300M": (24, 1024)}  # layers, width
ROUNDS = 5
COLUMNS = (
    "model",
    "MiB",
    "ZeRO",
    "engines",
    "send, s",
    "update, s",
    "copy, s",
    "MiB/s to each engine",
    "send + update over copy",
)


@dataclass
class Timings:
    """Seconds of each counted round."""

    send: list[float] = field(default_factory=list)
    update: list[float] = field(default_factory=list)
    copy: list[float] = field(default_factory=list)
    mib: float = 0.0
    """Size of the file."""


def actor_options(**env: str) -> dict[str, Any]:
    return {"num_cpus": 0, "runtime_env": {"env_vars": {**QUIET, "OMP_NUM_THREADS": "1", **env}}}


def start_engines(model: Path, count: int, folder: Path) -> RolloutFleet:
    settings = RolloutConfig(
        dtype="float32", threads=1, kv_cache_gib=0.05, max_sequences=16, max_model_len=64
    )
    arguments = []
    for i in range(count):
        arguments.append({"name": f"rollout-{i}", "model_path": str(model), "config": settings})
    options = actor_options(VLLM_ENABLE_V1_MULTIPROCESSING="0")
    return RolloutFleet("rollout", "actors.rollout:RolloutActor", arguments, options, folder / "logs")


def start_learners(model: Path, folder: Path) -> LearnerFleet:
    """Two learner ranks that share the model by ZeRO-3."""
    settings, model_config = (
        LearnerConfig(ranks=2, zero_stage=3, dtype="float32"),
        ModelConfig(path=str(model)),
    )
    arguments = [{"rank": rank, "config": settings, "model": model_config} for rank in range(2)]
    target = "actors.learner:LearnerActor"
    fleet = LearnerFleet("learner", target, arguments, actor_options(), folder / "logs")
    fleet.join()
    fleet.wait(
        fleet.submit_start_ppo(model, None, PPOConfig(advantage="grpo", dtype="float32"), None, 0),
        "start_ppo",
    )
    return fleet


def save_random_model(name: str, path: Path) -> Any:
    layers, width = SIZES[name]
    shape = {"layers": layers, "width": width, "heads": width // 64, "kv_heads": width // 128}
    config = ModelConfig(vocab_size=600, context=128, **shape)
    tokenizer = train_tokenizer([chr(97 + i) * 3 for i in range(26)], config.vocab_size)
    model = build_policy(config, tokenizer, 0)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return model


def send(model: Any, learners: LearnerFleet | None, transport: FileTransport, version: int) -> FilePayload:
    payload: WeightPayload | None
    if learners is not None:
        payload = learners.send_weights(transport, version)
    else:
        # A tied head is the embedding, which is sent already.
        weights = [(n, p) for n, p in model.named_parameters() if n != "lm_head.weight"]
        payload = transport.send(weights, 0, version)
    assert isinstance(payload, FilePayload)
    return payload


def measure(name: str, engines: int, zero: int, folder: Path) -> Timings:
    path = folder / name
    model = save_random_model(name, path)
    transport = make_transport(folder, None)
    rollouts, learners = start_engines(path, engines, folder), None
    timings = Timings()
    try:
        if zero == 3:
            learners = start_learners(path, folder)
        rollouts.ready()
        for version in range(1, ROUNDS + 2):
            started = time.perf_counter()
            payload = send(model, learners, transport, version)
            sent = time.perf_counter()
            rollouts.update_weights(payload, version)
            updated = time.perf_counter()
            shutil.copyfile(payload.path, f"{payload.path}.copy")
            copied = time.perf_counter()
            if version > 1:  # the first round loads code and touches fresh pages
                timings.send.append(sent - started)
                timings.update.append(updated - sent)
                timings.copy.append(copied - updated)
        timings.mib = payload.size / 2**20
    finally:
        rollouts.stop()
        if learners is not None:
            learners.stop()
        transport.close()
    return timings


def print_timings(name: str, engines: int, zero: int, timings: Timings) -> None:
    totals = [sent + updated for sent, updated in zip(timings.send, timings.update, strict=True)]
    ratios = [total / copied for total, copied in zip(totals, timings.copy, strict=True)]
    figures = [spread(timings.send), spread(timings.update), spread(timings.copy)]
    rate = f"{timings.mib / median(totals):,.0f}"
    print_row([name, f"{timings.mib:.0f}", zero, engines, *figures, rate, f"{median(ratios):.1f}"])


def main() -> None:
    parser = start_parser(__doc__)
    parser.add_argument("sizes", nargs="*", default=list(SIZES))
    parser.add_argument("--engines", nargs="*", type=int, default=[1, 2, 4])
    parser.add_argument("--zero", nargs="*", type=int, default=[0, 3], choices=[0, 3])
    arguments = parser.parse_args()
    start_ray(object_store_gib=0.1)
    print_header(COLUMNS)
    with tempfile.TemporaryDirectory() as scratch:
        for name, zero, engines in itertools.product(arguments.sizes, arguments.zero, arguments.engines):
            print_timings(name, engines, zero, measure(name, engines, zero, Path(scratch)))


if __name__ == "__main__":
    main()
