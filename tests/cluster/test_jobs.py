"""A run as a Ray job on a local Ray head, through `hero` and through plain `ray job submit`."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tests.runs import HERO, environment, free_port

RAY = [str(Path(sys.executable).with_name("ray"))]
TINY = ["configs/tiny.yaml", "stages=[pretrain]", "pretrain.steps=4", "quickstart.documents=600"]


@pytest.fixture(scope="module")
def head():
    """A Ray head of this test's own: its ports, its temporary directory, ended by its process group."""
    folder, port, dashboard = Path(f"/tmp/hero-jobs-{os.getpid()}"), free_port(), free_port()
    env = environment()
    env["RAY_AUTH_MODE"] = "disabled"  # whatever token lies in the home directory
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    command = [
        *RAY,
        "start",
        "--head",
        "--block",
        f"--port={port}",
        f"--dashboard-port={dashboard}",
        "--num-cpus=2",
        f"--temp-dir={folder}",
        "--object-store-memory=200000000",
        "--disable-usage-stats",
        f"--dashboard-agent-listen-port={free_port()}",
    ]
    log = open(f"{folder}.log", "w")  # noqa: SIM115
    process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{dashboard}"
    deadline = time.monotonic() + 90
    while subprocess.run([*HERO, "status", "--address", url], env=env, capture_output=True).returncode:
        assert time.monotonic() < deadline, Path(f"{folder}.log").read_text()
        time.sleep(1)
    yield url, env
    process.terminate()
    process.wait(60)
    shutil.rmtree(folder, ignore_errors=True)
    Path(f"{folder}.log").unlink()


def driver_of(root):
    """The process that holds the lock of a run directory."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if any(file.path == str(root / "lock") for file in process.open_files()):
                    return process
        time.sleep(0.5)
    raise AssertionError("no driver took the lock")


def hero(env, *args, **options):
    return subprocess.run([*HERO, *args], env=env, capture_output=True, text=True, timeout=200, **options)


@pytest.mark.timeout(400)
def test_killed_job_restarts_and_a_second_submit_continues_it(head, tmp_path):
    url, env = head
    more = [*TINY, f"run_dir={tmp_path / 'run'}"]
    submitted = hero(env, "submit", *more, "--address", url)
    assert submitted.returncode == 0, submitted.stderr
    driver = driver_of(tmp_path / "run")
    driver.kill()  # as a kernel short of memory would
    identity = submitted.stdout.split()[1].rstrip(";")
    again = hero(env, "submit", *more, "--address", url)
    assert again.returncode == 2
    assert "already" in again.stderr
    output = hero(env, "logs", "-f", identity, "--address", url)
    assert "the driver ended with exit code 137; retry 1 of 3" in output.stdout
    assert "pretrain" in output.stdout
    assert (tmp_path / "run" / "pretrain" / "done.json").exists(), output.stdout
    listed = hero({**env, "COLUMNS": "200"}, "status", "--address", url).stdout
    assert identity in listed
    assert "SUCCEEDED" in listed
    assert hero(env, "submit", *more, "--address", url).stdout.split()[1].rstrip(";") == identity
    assert hero(env, "stop", identity, "--address", url).returncode == 0


@pytest.mark.timeout(400)
def test_plain_ray_job_submit_works(head, tmp_path):
    url, env = head
    source = tmp_path / "source"
    for name in ("common", "cluster", "actors", "learners", "serve", "configs"):
        shutil.copytree(name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [*RAY, "job", "submit", "--address", url, "--working-dir", str(source), "--"]
    done = subprocess.run(
        [*command, "hero", "run", *TINY, f"run_dir={tmp_path / 'run'}"],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "run" / "pretrain" / "done.json").exists()


MINE = """
import helper


def texts(row):
    return [{"text": helper.FORMAT.format(**row)}]


def score(row, response, ended):
    return 1.0
"""


@pytest.fixture
def home(tmp_path):
    """A user's directory: modules, data with a form of its own, a config with relative paths."""
    home = tmp_path / "home"
    (home / "data").mkdir(parents=True)
    (home / "serve.py").write_text("raise RuntimeError('the wrong module')\n")
    (home / "mine.py").write_text(MINE)
    (home / "helper.py").write_text('FORMAT = "The {thing} is {colour}."\n')
    rows = []
    for number in range(600):
        rows.append({"thing": f"thing {number % 97}", "colour": ("red", "green", "blue")[number % 3]})
    (home / "data" / "raw.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = yaml.safe_load(Path("configs/tiny.yaml").read_text())
    config |= {"name": "mine", "stages": ["pretrain"]}
    config["data"] = {"root": "data", "corpus": {"path": "raw.jsonl", "convert": "mine:texts"}}
    config["pretrain"] |= {"steps": 4}
    config["rewards"] = {"sources": [{"kind": "function", "path": "mine:score"}]}
    (home / "mine.yaml").write_text(yaml.safe_dump(config))
    return home


def submit_from(home, env, url):
    """By the installed script, as `python -m` puts the working directory first on the import path."""
    command = [Path(sys.executable).with_name("hero"), "submit", "mine.yaml", "--address", url]
    return subprocess.run(command, env=env, cwd=home, capture_output=True, text=True, timeout=200)


@pytest.mark.timeout(400)
def test_a_job_carries_the_users_modules_and_finds_relative_paths(head, home):
    url, env = head
    submitted = submit_from(home, env, url)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    identity = submitted.stdout.split()[1].rstrip(";")
    # What the job carries is what was submitted.
    (home / "mine.py").write_text("raise RuntimeError('changed since')\n")
    output = hero(env, "logs", "-f", identity, "--address", url).stdout
    run = home / "runs" / "mine"
    assert (run / "pretrain" / "done.json").exists(), output
    assert json.loads((run / "layout.json").read_text())["started_in"] == str(home)
    assert json.loads((run / "pretrain" / "done.json").read_text())["results"]["data/corpus/read"] == 600


def test_what_cannot_work_is_refused_before_there_is_a_job(head, home):
    url, env = head
    (home / "helper.py").unlink()
    submitted = submit_from(home, env, url)
    assert submitted.returncode == 2
    assert "No module named 'helper'" in submitted.stderr
    assert f"{home / 'mine.py'}, line 2" in submitted.stderr.replace("\n", "")
    assert "Traceback" not in submitted.stderr
