"""PPO for an hour while something is killed every two minutes: what leaks, what is lost, and
whether the curve changes.

    python -m bench.soak runs/quickstart OUT [--minutes 60] [--every 120]
                         [--reference OTHER] [--set key=value …]

Needs a run whose reward stage is done. The PPO stage runs in OUT without an end of its own. Every
so many seconds (0: never) a rollout actor, a scoring actor, a learner rank or the driver, drawn by
seed, gets SIGKILL; a driver that was killed is started again. Every ten seconds OUT/soak.jsonl gets
a row of what the run's processes hold. At the end: medians of the first and the last quarter,
recovery times, and with a reference (an OUT of another call) how many iterations are equal to the
last bit.
"""

from __future__ import annotations

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

from bench.common import start_parser
from common.files import append_row, read_jsonl
from common.run_paths import RunPaths

STAGES = ("data", "pretrain", "sft", "collect", "reward")
VICTIMS = ("rollout-0", "scoring-0", "learner-0", "learner-1", "driver")
OVERRIDES = ("ppo.iterations=100000", "ppo.evaluate_every=1000000", "cluster.max_restarts=1000")
TIMED = ("time", "perf/", "idle/", "flow/queue")
"""First part of the names of metrics that differ between equal runs."""
SAMPLE_S = 10.0
"""Seconds between two rows of soak.jsonl."""


class SoakRun:
    """The run under test: its driver as a process, and the processes of its actors."""

    def __init__(self, source: Path, out: Path, overrides: list[str]) -> None:
        self.source, self.out, self.overrides = source, out, overrides
        self.printed = out / "printed.log"
        out.mkdir(parents=True, exist_ok=True)
        for stage in STAGES:
            if not (out / stage).exists():
                (out / stage).symlink_to(source / stage)
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        config = str(RunPaths(self.source).config)
        own = [*OVERRIDES, f"run_dir={self.out}", f"name={self.out.name}", *self.overrides]
        command = [sys.executable, "-m", "cluster.cli", "run", config, *own, "--until", "ppo"]
        with open(self.printed, "a") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)

    def check(self) -> None:
        """Ends this program if the driver has ended by itself."""
        if self.process.poll() is not None:
            raise SystemExit(f"the run ended; see {self.printed}")

    def processes(self) -> dict[str, psutil.Process]:
        """The driver, and the actors that are up, by name: each has its log open."""
        driver = psutil.Process(self.process.pid)
        processes = {"driver": driver}
        for child in driver.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                for file in child.open_files():
                    path = Path(file.path)
                    if path.parent == RunPaths(self.out).logs and path.suffix == ".log":
                        processes[path.stem] = child
        return processes

    def usage(self) -> dict[str, float]:
        """Memory of each actor and of the driver (MiB not shared with other processes), open files
        and threads of the driver, number of processes, and shared memory in use (MiB)."""
        row: dict[str, float] = {}
        for name, process in self.processes().items():
            with contextlib.suppress(psutil.Error):
                row[f"{name}, MiB"] = process.memory_full_info().uss / 2**20
        driver = psutil.Process(self.process.pid)
        row["driver, open files"] = driver.num_fds()
        row["driver, threads"] = driver.num_threads()
        row["processes"] = len(driver.children(recursive=True))
        row["/dev/shm, MiB"] = shutil.disk_usage("/dev/shm").used / 2**20
        return row

    def kill(self, victim: str) -> bool:
        """Kills a process, waits for the next step and writes a row of kills.jsonl. False if the
        process is not up."""
        process = self.processes().get(victim)
        if process is None:
            return False
        step, killed_at = len(ppo_metrics(self.out)), time.monotonic()
        process.kill()
        if victim == "driver":
            self.process.wait()
            self.process = self._start()
        while len(ppo_metrics(self.out)) <= step and self.process.poll() is None:
            time.sleep(0.2)
        row = {"victim": victim, "step": step, "seconds": time.monotonic() - killed_at}
        append_row(self.out / "kills.jsonl", row)
        return True

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


def soak(run: SoakRun, minutes: float, every: float, seed: int) -> None:
    rng = random.Random(seed)
    while not ppo_metrics(run.out):
        run.check()
        time.sleep(1)
    started = last_kill = last_sample = time.monotonic()
    while time.monotonic() < started + 60 * minutes:
        time.sleep(1)
        run.check()
        now = time.monotonic()
        if every and now > last_kill + every:
            if run.kill(rng.choice(VICTIMS)):
                last_kill = now
        elif now > last_sample + SAMPLE_S:
            last_sample = now
            # An actor may end between two of the questions; the next row has it again.
            with contextlib.suppress(psutil.Error):
                row = {"minute": (now - started) / 60, "step": len(ppo_metrics(run.out)), **run.usage()}
                append_row(run.out / "soak.jsonl", row)
    run.stop()


def print_results(out: Path, reference: Path | None) -> None:
    samples, steps = read_jsonl(out / "soak.jsonl"), ppo_metrics(out)
    print(f"{samples[-1]['minute']:.0f} minutes, {len(steps)} iterations\n")
    print_usage(samples)
    print_recoveries(out)
    batches = read_jsonl(RunPaths(out).batches)
    each_once = [row["step"] for row in steps] == list(range(1, len(steps) + 1))
    print(f"{len(batches)} batches logged, {len(steps)} iterations; every step once: {each_once}")
    if reference:
        pairs = list(zip(steps, ppo_metrics(reference), strict=False))
        equal = sum(without_times(one) == without_times(other) for one, other in pairs)
        print(f"equal to the last bit with {reference}: {equal} of {len(pairs)} iterations that both have")


def print_usage(samples: list[dict[str, Any]]) -> None:
    quarter = max(1, len(samples) // 4)
    print("| | first quarter | last quarter |\n|---|---|---|")
    for name in sorted({name for row in samples for name in row} - {"minute", "step"}):
        cells = []
        for rows in (samples[:quarter], samples[-quarter:]):
            values = [row[name] for row in rows if name in row]
            cells.append(f"{statistics.median(values):.0f}" if values else "")
        print(f"| {name} | {cells[0]} | {cells[1]} |")


def print_recoveries(out: Path) -> None:
    path = out / "kills.jsonl"
    if not path.exists():
        return
    kills = read_jsonl(path)
    for victim in VICTIMS:
        seconds = [row["seconds"] for row in kills if row["victim"] == victim]
        if seconds:
            times = f"{statistics.median(seconds):.1f} s, {max(seconds):.1f} s at most"
            print(f"{victim}: {len(seconds)} kills, the next step after {times}")


def ppo_metrics(out: Path) -> list[dict[str, Any]]:
    path = RunPaths(out).metrics
    if not path.exists():
        return []
    return [row for row in read_jsonl(path) if row["stage"] == "ppo"]


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    """A row of metrics without those that depend on how fast the machine was."""
    return {name: value for name, value in row.items() if not name.startswith(TIMED)}


if __name__ == "__main__":
    parser = start_parser(__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--set", dest="overrides", nargs="*", default=[], metavar="key=value")
    options = parser.parse_args()
    out_dir = options.out.absolute()
    soak(
        SoakRun(options.source.absolute(), out_dir, options.overrides),
        options.minutes,
        options.every,
        options.seed,
    )
    print_results(out_dir, options.reference)
