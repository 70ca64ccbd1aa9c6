"""A cluster that is not there is a message at once."""

import subprocess
import sys
import time

import pytest

from common.errors import UserError
from common.ray_session import start_ray
from tests.runs import HERO, environment, free_port


@pytest.fixture
def closed_port():
    return free_port()


def test_address_where_nothing_answers_is_named_within_seconds(closed_port, monkeypatch):
    started = time.monotonic()
    with pytest.raises(UserError, match=f"cluster.address=127.0.0.1:{closed_port}: no Ray cluster answers"):
        start_ray(f"127.0.0.1:{closed_port}")
    monkeypatch.setenv("RAY_ADDRESS", f"ray://localhost:{closed_port}")
    with pytest.raises(UserError, match=r"RAY_ADDRESS=ray://localhost.*or correct RAY_ADDRESS"):
        start_ray()
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("address", ["somewhere", "host:port", ":6379"])
def test_address_of_another_form_is_named(address):
    with pytest.raises(UserError, match="expected auto or HOST:PORT"):
        start_ray(address)


@pytest.mark.parametrize("token", [None, "a" * 64])
def test_own_cluster_neither_takes_nor_leaves_a_token_in_the_home_directory(tmp_path, token):
    """Also after another command of this process has sent the one that is there."""
    if token:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray/auth_token").write_text(token)
    code = f"""
import os, ray
from common.ray_session import send_token, start_ray
assert send_token() is {token is not None}
start_ray(cpus=1)
assert os.environ["RAY_AUTH_TOKEN"] != {token!r}
assert ray.get(ray.remote(lambda: 3).remote()) == 3
"""
    command = [sys.executable, "-c", code]
    subprocess.run(command, env={**environment(), "HOME": str(tmp_path)}, check=True, timeout=120)
    assert [file.read_text() for file in tmp_path.rglob("auth_token")] == ([token] if token else [])


def test_ray_that_does_not_start_is_one_sentence(tmp_path):
    """And exit code 1, after which a run is started again."""
    command = [*HERO, "run", "configs/tiny.yaml", f"run_dir={tmp_path}", "stages=[pretrain]"]
    env = {**environment(), "RAY_TMPDIR": "/proc/nowhere"}
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert "Ray did not start on this machine (" in ended.stderr
    assert "/proc/nowhere" in ended.stderr
    assert "Traceback" not in ended.stderr
