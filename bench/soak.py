"""PPO for an hour while something is killed every two minutes: what leaks, what is lost, and whether the curve is another.

    python -m bench.soak runs/quickstart OUT [--minutes 60] [--every 120] [--reference OTHER] [--set key=value …]

AdvantageSpec a run whose reward stage is done. The PPO stage runs in OUT, with no end of its own; every so many seconds (0: never) a
rollout actor, a scoring actor, a learner rank or the driver, drawn by seed, gets SIGKILL, and a driver that was killed is started
again. Every ten seconds OUT/soak.jsonl gets what its processes hold. At the end: medians of the first and the last quarter,
recovery times, and with a reference (an OUT of another call) how many iterations are equal to the last bit.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from common.files import append_row, read_jsonl

STAGES = ("data", "pretrain", "sft", "collect", "reward")
VICTIMS = ("rollout-0", "scoring-0", "learner-0", "learner-1", "driver")
SKIPPED = ("time", "perf/", "idle/", "flow/queue")  # of metrics that are equal from run to run


def start(source: Path, out: Path, changes: list[str]) -> subprocess.Popen[bytes]:
    given = [
        "ppo.iterations=100000",
        "ppo.evaluate_every=1000000",
        "cluster.max_restarts=1000",
        f"run_dir={out}",
        f"name={out.name}",
    ]
    command = [
        sys.executable,
        "-m",
        "cluster.cli",
        "run",
        str(source / "config.yaml"),
        *given,
        *changes,
        "--until",
        "ppo",
    ]
    with open(out / "printed.log", "a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def actors(driver: psutil.Process, out: Path) -> dict[str, psutil.Process]:
    """The run's actors by name: each has its log open."""
    found = {}
    for child in driver.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            for file in child.open_files():
                path = Path(file.path)
                if path.parent == out / "logs" and path.suffix == ".log":
                    found[path.stem] = child
    return found


def held(driver: psutil.Process, out: Path) -> dict[str, float]:
    """Memory of each actor and of the driver (MiB that nobody else has), the driver's open files and threads, all processes,
    and shared memory in use (MiB)."""
    row: dict[str, float] = {}
    for name, process in {"driver": driver, **actors(driver, out)}.items():
        with contextlib.suppress(psutil.Error):
            row[f"{name}, MiB"] = process.memory_full_info().uss / 2**20
    row |= {"driver's files": driver.num_fds(), "driver's threads": driver.num_threads()}
    row["processes"] = len(driver.children(recursive=True))
    return row | {"/dev/shm, MiB": shutil.disk_usage("/dev/shm").used / 2**20}


def steps(out: Path) -> list[dict[str, Any]]:
    path = out / "metrics.jsonl"
    return [row for row in read_jsonl(path) if row["stage"] == "ppo"] if path.exists() else []


def soak(source: Path, out: Path, minutes: float, every: float, changes: list[str], seed: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for stage in STAGES:
        if not (out / stage).exists():
            (out / stage).symlink_to(source / stage)
    draw, process = random.Random(seed), start(source, out, changes)
    while not steps(out):
        if process.poll() is not None:
            raise SystemExit(f"the run ended; see {out / 'printed.log'}")
        time.sleep(1)
    begun = struck = looked = time.monotonic()
    while time.monotonic() < begun + 60 * minutes:
        time.sleep(1)
        now, driver = time.monotonic(), psutil.Process(process.pid)
        if process.poll() is not None:
            raise SystemExit(f"the run ended; see {out / 'printed.log'}")
        if every and now > struck + every:
            victim = draw.choice(VICTIMS)
            target = {"driver": driver, **actors(driver, out)}.get(victim)
            if target:
                step, struck = len(steps(out)), now
                target.kill()
                if victim == "driver":
                    process.wait()
                    process = start(source, out, changes)
                while len(steps(out)) <= step and process.poll() is None:
                    time.sleep(0.2)
                append_row(
                    out / "kills.jsonl", {"victim": victim, "step": step, "seconds": time.monotonic() - now}
                )
        elif now > looked + 10:
            looked = now
            with contextlib.suppress(psutil.Error):
                append_row(
                    out / "soak.jsonl",
                    {"minute": (now - begun) / 60, "step": len(steps(out)), **held(driver, out)},
                )
    process.terminate()
    process.wait()


def tell(out: Path, reference: Path | None) -> None:
    found = read_jsonl(out / "soak.jsonl")
    quarter = max(1, len(found) // 4)
    print(
        f"{found[-1]['minute']:.0f} minutes, {len(steps(out))} iterations\n\n| | first quarter | last quarter |\n|---|---|---|"
    )
    for name in sorted({name for row in found for name in row} - {"minute", "step"}):
        parts = [[row[name] for row in part if name in row] for part in (found[:quarter], found[-quarter:])]
        print(
            f"| {name} | "
            + " | ".join(f"{statistics.median(part):.0f}" if part else "" for part in parts)
            + " |"
        )
    kills = read_jsonl(out / "kills.jsonl") if (out / "kills.jsonl").exists() else []
    for victim in VICTIMS:
        seconds = [kill["seconds"] for kill in kills if kill["victim"] == victim]
        if seconds:
            middle, most = statistics.median(seconds), max(seconds)
            print(f"{victim}: {len(seconds)} kills, the next step after {middle:.1f} s, {most:.1f} s at most")
    asked = [row["prompts"] for row in read_jsonl(out / "ppo" / "batches.jsonl")]
    print(
        f"{len(asked)} batches logged, {len(steps(out))} iterations; every step once: {numbered(steps(out))}"
    )
    if reference:
        same = [timeless(a) == timeless(b) for a, b in zip(steps(out), steps(reference), strict=False)]
        print(f"equal to the last bit with {reference}: {sum(same)} of {len(same)} iterations that both have")


def numbered(rows: list[dict[str, Any]]) -> bool:
    return [row["step"] for row in rows] == list(range(1, len(rows) + 1))


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.startswith(SKIPPED)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--set", dest="changes", nargs="*", default=[], metavar="key=value")
    given = parser.parse_args()
    soak(given.source.absolute(), given.out.absolute(), given.minutes, given.every, given.changes, given.seed)
    tell(given.out.absolute(), given.reference)
