"""How many labels a second `hero label serve` takes from people who all work at once, and how long they wait.

    python -m bench.label_load [people 32] [items 400] [--database postgresql+psycopg://USER@HOST/EMPTY]

Simulated people, each in a thread of this process, label every item twice over HTTP and never pause: a label
is one request for the next item and one that submits. The first label of each is not counted. The baseline is
the same number of requests to /health by the same people, each of which asks the database for a 1: what HTTP
itself costs. Times include the work of the people on the same cores; CPU time is that of the server alone.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil

from bench.common import print_header, print_row, start_parser
from common.network import free_ports
from label.config import LabelConfig
from label.simulate import SimulatedPerson, make_people, work_together
from label.simulated_team import admit_all
from label.store.items import BatchSpec, add_items
from label.workplace import Workplace

OVERLAP, RESPONSES = 2, 3
COLUMNS = ("requests", "requests/s", "p50 ms", "p99 ms", "CPU ms each")


class Server:
    """`hero label serve` in a process of its own, which can be killed and started again."""

    def __init__(self, run: Path, settings: dict[str, Any]) -> None:
        (port,) = free_ports(1)
        values = [f"{key}={value}" for key, value in settings.items()]
        arguments = ["label", "serve", str(run), f"port={port}", *values]
        self.command = [sys.executable, "-m", "cluster.cli", *arguments]
        self.url = f"http://127.0.0.1:{port}"
        self.start()

    def start(self) -> float:
        """Returns the seconds until it answers."""
        started = time.monotonic()
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL)
        while time.monotonic() < started + 60:
            assert self.process.poll() is None
            try:
                if httpx.get(f"{self.url}/health", trust_env=False).status_code == 200:
                    return time.monotonic() - started
            except httpx.TransportError:
                time.sleep(0.02)
        raise AssertionError("the server does not answer")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def cpu_s(self) -> float:
        """Processor time of the server so far."""
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def rows(count: int) -> list[dict[str, Any]]:
    """Items for an import."""
    responses = [[f"Answer {k} to question {i}." for k in range(RESPONSES)] for i in range(count)]
    return [{"prompt": f"Question {i}?", "responses": responses[i]} for i in range(count)]


def timed(server: Server, work: Callable[[], None]) -> tuple[float, float]:
    """Seconds and the server's CPU seconds of some work."""
    started, cpu_s = time.monotonic(), server.cpu_s()
    work()
    return time.monotonic() - started, server.cpu_s() - cpu_s


def ask_health(people: Sequence[SimulatedPerson], requests: int) -> list[float]:
    """Seconds of each of `requests` requests to /health, by all people at once."""
    durations_s: list[float] = []

    def ask(one: SimulatedPerson) -> None:
        for _ in range(requests // len(people)):
            started = time.monotonic()
            one.client.get("/health").raise_for_status()
            durations_s.append(time.monotonic() - started)

    threads = [threading.Thread(target=ask, args=(one,)) for one in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return durations_s


def print_figures(name: str, durations_s: Sequence[float], seconds: float, cpu_s: float) -> None:
    times = [f"{percentile(durations_s, share) * 1000:.0f}" for share in (0.5, 0.99)]
    count = len(durations_s)
    print_row([name, f"{count / seconds:.0f}", *times, f"{cpu_s / count * 1000:.1f}"])


def measure(server: Server, people: Sequence[SimulatedPerson]) -> None:
    work_together(people, limit=1)
    for one in people:
        one.durations_s.clear()
    seconds, cpu_s = timed(server, lambda: work_together(people))
    labels = sum(len(one.acknowledged) - 1 for one in people)
    # They alternate, and the last `next` of each finds nothing.
    next_s = [value for one in people for value in one.durations_s[0::2]]
    submit_s = [value for one in people for value in one.durations_s[1::2]]
    health_s: list[float] = []
    baseline_s, baseline_cpu_s = timed(server, lambda: health_s.extend(ask_health(people, 2 * labels)))
    print(f"{labels} labels, {labels / seconds:.0f} labels/s, {cpu_s / labels * 1000:.1f} CPU ms per label\n")
    print_header(COLUMNS)
    print_figures("next and submit", next_s + submit_s, seconds, cpu_s)
    for name, durations_s in (("next", next_s), ("submit", submit_s)):
        times = [f"{percentile(durations_s, share) * 1000:.0f}" for share in (0.5, 0.99)]
        print_row([name, "", *times, ""])
    print_figures("/health", health_s, baseline_s, baseline_cpu_s)
    share = len(next_s + submit_s) / seconds / (len(health_s) / baseline_s)
    print(f"\nrequests/s as a share of those to /health: {share:.2f}")


def main() -> None:
    parser = start_parser(__doc__)
    parser.add_argument("people", type=int, nargs="?", default=32)
    parser.add_argument("items", type=int, nargs="?", default=400)
    parser.add_argument("--database", help="an empty PostgreSQL database; SQLite without")
    args = parser.parse_args()
    settings: dict[str, Any] = {"gold_share": 0, "calibration_share": 0, "repeat_share": 0}
    if args.database:
        settings["database"] = args.database
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        workplace = Workplace(run, LabelConfig.model_validate(settings))
        spec = BatchSpec("load", "rank", OVERLAP)
        add_items(workplace.database, spec, rows(args.items))
        server = Server(run, settings)
        try:
            people = make_people(server.url, args.people, seed=1)
            admit_all(workplace, people)
            measure(server, people)
        finally:
            server.kill()
            workplace.database.close()


if __name__ == "__main__":
    main()
