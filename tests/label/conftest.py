"""Workplaces on SQLite and on PostgreSQL. PostgreSQL runs from a temporary folder on a port of its own; where
it is not installed those tests are skipped."""

import glob
import os
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path

import pytest

from label.config import LabelConfig
from label.store.items import BatchSpec, add_items
from label.workplace import Workplace
from tests.runs import free_port

BINARIES = sorted(glob.glob("/usr/lib/postgresql/*/bin"))


@pytest.fixture(scope="session")
def postgres():
    """Address of a running PostgreSQL server, without the name of a database."""
    if not BINARIES:
        pytest.skip("PostgreSQL is not installed; install it with `apt-get install postgresql`")
    binaries, user = Path(BINARIES[-1]), None
    folder = tempfile.mkdtemp(prefix="pg-")
    if os.geteuid() == 0:  # which PostgreSQL refuses to run as
        user = "postgres"
        shutil.chown(folder, user)
    port = free_port()
    initdb = [
        binaries / "initdb",
        "-D",
        f"{folder}/data",
        "-A",
        "trust",
        "-U",
        "hero",
        "-E",
        "UTF8",
        "--no-sync",
    ]
    subprocess.run(initdb, check=True, user=user, capture_output=True, cwd=folder)
    options = f"-p {port} -c fsync=off -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    control = [binaries / "pg_ctl", "-D", f"{folder}/data", "-w", "-l", f"{folder}/log"]
    subprocess.run([*control, "-o", options, "start"], check=True, user=user, capture_output=True, cwd=folder)
    yield f"postgresql+psycopg://hero@127.0.0.1:{port}"
    subprocess.run(
        [*control, "-m", "immediate", "stop"], check=False, user=user, capture_output=True, cwd=folder
    )
    shutil.rmtree(folder, ignore_errors=True)


def new_database(address):
    import psycopg

    name = f"label_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(address.replace("+psycopg", "") + "/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{address}/{name}"


BOTH = pytest.mark.parametrize("database_url", ["sqlite", "postgres"], indirect=True)


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request):
    """None for SQLite, else the URL of an empty PostgreSQL database."""
    return address_of(request)


def address_of(request):
    """For `database_url`; SQLite where a test asks for no database."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return None
    return new_database(request.getfixturevalue("postgres"))


@pytest.fixture
def make_workplace(tmp_path, database_url):
    opened = []

    def make(**settings):
        values = {"gold_share": 0, "calibration_share": 0, "repeat_share": 0, "database": database_url}
        values["requests_per_10_s"] = 1000
        workplace = Workplace(tmp_path / "run", LabelConfig(**{**values, **settings}))
        opened.append(workplace)
        return workplace

    yield make
    for workplace in opened:
        workplace.database.close()


@pytest.fixture
def workplace(make_workplace):
    return make_workplace()


def item_rows(count, responses=3):
    """Rows of an import, as the collect stage writes them."""
    rows = []
    for i in range(count):
        rows.append(
            {
                "prompt": f"Question {i}?",
                "responses": [f"Answer {k} to {i}." for k in range(responses)],
                "ended": [True] * responses,
                "policy": [{"model": "tiny", "version": f"ppo-{k}"} for k in range(responses)],
                "decoding": [{"temperature": 1.0}] * responses,
                "reward": [0.25 * k for k in range(responses)],
                "row": {"prompt": f"Question {i}?", "secret_truth": i},
            }
        )
    return rows


def add(workplace, count=3, name="first", responses=3, rows=None, **spec):
    values = {"kind": "rank", "quota": 1, **spec}
    return add_items(workplace.database, BatchSpec(name, **values), rows or item_rows(count, responses))


def admit(workplace, name="Ada", role="labeler", group="training"):
    """A person who may label at once; returns the id."""
    from label.store import guidelines, people
    from label.vocabulary import KINDS

    version, _ = workplace.consent()
    with workplace.database.write() as connection:
        code = people.create_invite(connection, role, group)
        given = people.Joining(code, name, version)
        person, _ = people.join(connection, workplace.settings, version, given)
        people.set_state(connection, person, "admitted", "test", "")
        for kind in KINDS:
            guidelines.acknowledge(connection, person, guidelines.newest(connection, kind).version)
    return person


def submission(task, ranks=None, **values):
    """A complete label for what `next` gave, by default in the shown order."""
    ids = [response["id"] for response in task["responses"]]
    places = ranks or list(range(1, len(ids) + 1))
    return {
        "ratings": {
            one: {"likert": max(1, 7 - place), "flags": []} for one, place in zip(ids, places, strict=True)
        },
        "ranks": dict(zip(ids, places, strict=True)),
        **values,
    }
