"""Many people at once over HTTP, and a server that is killed while they work: exact quotas, nothing lost.

The small versions run always; `-m slow` runs 32 people on 300 items, and 200 kills."""

import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import httpx
import pytest
import sqlalchemy as sa

from label.config import LabelConfig
from label.simulate import make_people, work_together
from label.store.people import create_invite, set_state
from label.store.tables import item, label
from label.workplace import Workplace
from tests.label.conftest import add
from tests.label.test_label_cli import free_port


class Server:
    """`hero label serve` in a process of its own, which can be killed and started again."""

    def __init__(self, run, settings):
        self.port = free_port()
        values = [f"{key}={value}" for key, value in settings.items()]
        arguments = ["label", "serve", str(run), f"port={self.port}", *values]
        self.command = [sys.executable, "-m", "cluster.cli", *arguments]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
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

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def start_server(tmp_path, database_url):
    """Opens a workplace and serves it; both with the same settings."""
    opened = []

    def start(**settings):
        settings = {"gold_share": 0, "calibration_share": 0, "repeat_share": 0, **settings}
        if database_url:
            settings["database"] = database_url
        workplace = Workplace(tmp_path / "run", LabelConfig(**settings))
        server = Server(tmp_path / "run", settings)
        opened.append((workplace, server))
        return workplace, server

    yield start
    for workplace, server in opened:
        server.kill()
        workplace.database.close()


def join_all(workplace, people):
    for one in people:
        with workplace.database.write() as connection:
            code = create_invite(connection, "labeler", "simulated")
        person = one.join(code)
        with workplace.database.write() as connection:
            set_state(connection, person, "admitted", "test", "")


def check_counts(workplace, items, quota):
    """Every item has exactly its quota, by different people."""
    with workplace.database.read() as connection:
        counts = [(row.labels, row.leases) for row in connection.execute(sa.select(item))]
        pairs = connection.execute(sa.select(label.c.item, label.c.person)).all()
    assert counts == [(quota, 0)] * items
    assert len(pairs) == len(set(pairs)) == items * quota
    assert set(Counter(row.item for row in pairs).values()) == {quota}


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


SMALL, LARGE = (8, 30, 0.05), (32, 300, 0.05)
"""People, items, minutes of a lease."""


@pytest.mark.parametrize("database_url", ["sqlite", "postgres"], indirect=True)
@pytest.mark.parametrize("size", [SMALL, pytest.param(LARGE, marks=pytest.mark.slow)])
def test_abandoned_leases_come_back_and_quotas_are_exact(start_server, size):
    count, items, lease_min = size
    workplace, server = start_server(lease_min=lease_min)
    add(workplace, items, quota=2)
    lease_s = lease_min * 60
    settings = {"abandons": 0.2, "abandon_s": lease_s + 0.5}
    people = make_people(server.url, count, seed=1, **settings)
    join_all(workplace, people)
    started = time.monotonic()
    work_together(people)
    # Whoever finds nothing goes home; what the last ones abandon waits for its lease.
    while sum(len(one.acknowledged) for one in people) < items * 2:
        assert time.monotonic() < started + 120
        time.sleep(0.2)
        for one in people:
            one.abandons = 0.0
        work_together(people)
    check_counts(workplace, items, 2)
    durations = [value for one in people for value in one.durations_s]
    seconds, name = time.monotonic() - started, workplace.database.url.get_backend_name()
    p50, p99 = (percentile(durations, share) * 1000 for share in (0.5, 0.99))
    print(
        f"{name}: {count} people, {items} items, {items * 2} labels in {seconds:.1f} s, "
        f"p50 {p50:.0f} ms, p99 {p99:.0f} ms"
    )


@pytest.mark.parametrize("database_url", ["sqlite", "postgres"], indirect=True)
@pytest.mark.parametrize("kills", [2, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_no_acknowledged_label_is_lost_when_the_server_is_killed(start_server, kills):
    workplace, server = start_server(lease_min=0.05)
    items = 25 * kills
    add(workplace, items, quota=2)
    people = make_people(server.url, 4, seed=2, patience_s=90)
    join_all(workplace, people)
    workers = threading.Thread(target=work_together, args=(people,))
    workers.start()
    rng, restarts = random.Random(0), []
    for _ in range(kills):
        time.sleep(0.1 + rng.random() * 0.5)
        server.kill()
        restarts.append(server.start())
    workers.join(timeout=1200)
    acknowledged = [one for person in people for one in person.acknowledged]
    with workplace.database.read() as connection:
        stored = {row.id for row in connection.execute(sa.select(label.c.id))}
        is_over = item.c.labels + item.c.leases > item.c.quota
        over = connection.execute(sa.select(item.c.id).where(is_over)).all()
        if workplace.database.is_sqlite:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
    assert set(acknowledged) == stored
    assert len(acknowledged) == len(stored)
    assert over == []
    print(
        f"{workplace.database.url.get_backend_name()}: {kills} kills, {len(stored)} labels acknowledged, "
        f"0 lost, back after {max(restarts):.1f} s at most"
    )


def test_simulated_people_of_a_seed_behave_alike_and_careless_ones_as_they_are():
    task = {
        "prompt": "Q?",
        "kind": "rank",
        "responses": [{"id": f"{i:016x}", "text": "x" * (i + 1)} for i in range(4)],
    }
    first, again = (make_people("http://127.0.0.1", 2, seed=3) for _ in range(2))
    assert [one.label(task) for one in first] == [one.label(task) for one in again]
    (by_place,) = make_people("http://127.0.0.1", 1, seed=3, behaviour="first")
    assert list(by_place.label(task)["ranks"].values()) == [1, 2, 3, 4]
    (by_length,) = make_people("http://127.0.0.1", 1, seed=3, behaviour="longest")
    assert list(by_length.label(task)["ranks"].values()) == [4, 3, 2, 1]
