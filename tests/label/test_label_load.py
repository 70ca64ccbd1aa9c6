"""Many people at once over HTTP, and a server that is killed while they work: exact quotas, nothing lost.

The small versions run always; `-m slow` runs 32 people on 300 items, and 200 kills."""

import random
import shutil
import sqlite3
import threading
import time
from collections import Counter

import pytest
import sqlalchemy as sa

from bench.label_load import Server, percentile
from label.config import LabelConfig
from label.simulate import make_people, work_together
from label.store.database import Database
from label.store.people import create_invite, set_state
from label.store.tables import item, label
from label.workplace import Workplace
from tests.label.conftest import BOTH, add


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


SMALL, LARGE = (8, 30, 0.05), (32, 300, 0.05)
"""People, items, minutes of a lease."""


@BOTH
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


@BOTH
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


WAL_HEADER = 32
"""Bytes; they change when the log begins anew after a checkpoint, and its first frames are overwritten."""


def copy_as_a_power_cut_leaves_it(database, target):
    """Copies the file, then its log, until the log did not begin anew meanwhile; returns its header. A
    checkpoint alone does no harm: the pages that it writes while the file is read are still in the log."""
    log = database.with_name(database.name + "-wal")
    while True:
        before = log.read_bytes()[:WAL_HEADER]
        shutil.copyfile(database, target)
        shutil.copyfile(log, target.with_name(target.name + "-wal"))
        if log.read_bytes()[:WAL_HEADER] == before:
            return before


def check_copy(file, acknowledged):
    """It opens whole, with every acknowledged label and counts that are right; returns how many labels."""
    copy = Database.of_file(file)
    with copy.read() as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
        stored = {row.id for row in connection.execute(sa.select(label.c.id))}
        assert connection.execute(sa.select(sa.func.sum(item.c.labels))).scalar() == len(stored)
    copy.close()
    assert acknowledged <= stored
    return len(stored)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "copies", [6, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_a_power_cut_leaves_a_database_that_opens_with_every_acknowledged_label(
    start_server, tmp_path, copies
):
    workplace, server = start_server()
    add(workplace, 12 * copies, quota=2)
    people = make_people(server.url, 4, seed=3)
    join_all(workplace, people)
    workers = threading.Thread(target=work_together, args=(people,))
    workers.start()
    source, rng, known, headers = workplace.paths.label_database, random.Random(1), [], set()
    for number in range(copies):
        time.sleep(rng.random() * 0.4)
        known.append({one for person in people for one in person.acknowledged})
        headers.add(copy_as_a_power_cut_leaves_it(source, tmp_path / f"{number}.db"))
        # The log begins anew with the next label.
        checkpoint = sqlite3.connect(source)
        checkpoint.execute("PRAGMA wal_checkpoint(RESTART)")
        checkpoint.close()
    workers.join(timeout=1200)
    stored = [check_copy(tmp_path / f"{number}.db", ids) for number, ids in enumerate(known)]
    assert stored[0] < stored[-1]
    assert len(headers) > 1
    print(f"{copies} copies with {stored[0]} to {stored[-1]} labels, {len(headers)} beginnings of the log")


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
