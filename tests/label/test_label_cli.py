"""`hero label`: a workplace from the first command to the files that training reads, with a real server."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from cluster.cli import app
from common.errors import UserError
from common.files import read_jsonl, write_jsonl
from label.server import check_address
from label.store.database import Database, refuse_network_file_system
from label.workplace import read_settings
from tests.label.conftest import item_rows, submission
from tests.runs import free_port


def hero(*arguments):
    result = CliRunner().invoke(app, ["label", *map(str, arguments)])
    assert result.exit_code == 0, result.output + str(result.exception)
    return result.output


def start_server(run, port, log):
    command = [sys.executable, "-m", "cluster.cli", "label", "serve", str(run), f"port={port}"]
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server ended"
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                return process
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError("the server does not answer")


def test_a_workplace_from_invite_to_export(tmp_path):
    run, port = tmp_path / "run", free_port()
    (run / "label").mkdir(parents=True)
    (run / "label" / "settings.yaml").write_text(f"port: {port}\ngold_share: 0\ncalibration_share: 0\n")
    write_jsonl(tmp_path / "responses.jsonl", item_rows(2))
    assert "2 items added" in hero("add", run, tmp_path / "responses.jsonl", "--batch", "first")
    url = hero("invite", run).strip()
    assert url.startswith(f"http://127.0.0.1:{port}/join#")
    with open(tmp_path / "log", "w+") as log:
        process = start_server(run, port, log)
        try:
            client = httpx.Client(base_url=f"http://127.0.0.1:{port}")
            consent = client.get("/api/consent").json()["version"]
            code = url.partition("#")[2]
            body = {"code": code, "name": "Ada", "consent_version": consent}
            assert client.post("/api/join", json=body).status_code == 200
            assert "screening" in hero("people", run)
            hero("admit", run, "Ada", "--why", "well done")
            version = client.get("/api/guidelines", params={"kind": "rank"}).json()["version"]
            client.post("/api/guidelines/ack", json={"version": version})
            task = client.post("/api/next", json={}).json()
            path, headers = f"/api/assignments/{task['assignment']}/submit", {"idempotency-key": "submit-1"}
            assert client.post(path, json=submission(task), headers=headers).status_code == 200
            hero("backup", run, tmp_path / "copy.db")
            hero("pause", run, "Ada")
            assert "1 labels held back" in hero("export", run)
            hero("admit", run, "Ada")
            assert "labels.jsonl: 1 rows" in hero("export", run).replace("\n", "")
            (row,) = read_jsonl(run / "label" / "exports" / "labels.jsonl")
            before = (run / "label" / "exports" / "labels.jsonl").read_bytes()
            hero("export", run)
            assert (run / "label" / "exports" / "labels.jsonl").read_bytes() == before
            description = json.loads((run / "label" / "exports" / "labels.json").read_text())
            assert description["files"]["labels.jsonl"]["rows"] == 1
            assert row["prompt"].startswith("Question")
            assert "first" in hero("batches", run, "--close", "first")
            assert client.post("/api/next", json={}).status_code == 204
            hero("forget", run, "Ada", "--void-labels")
            assert client.get("/api/me").status_code == 401
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0
    assert "owner's invite" in Path(tmp_path / "log").read_text()
    copy = Database.of_file(tmp_path / "copy.db")
    with copy.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM label").scalar() == 1
    copy.close()


def test_settings_come_from_files_and_overrides_and_wrong_ones_are_named(tmp_path):
    (tmp_path / "label").mkdir()
    (tmp_path / "config.yaml").write_text("seed: 1\nlabel: {port: 8200, overlap: 2}\n")
    (tmp_path / "label" / "settings.yaml").write_text("port: 8300\n")
    settings = read_settings(tmp_path, ["screening.auto_admit=true"])
    assert (settings.port, settings.overlap, settings.screening.auto_admit) == (8300, 2, True)
    with pytest.raises(UserError, match=r"label\.lease_min: Input should be greater than 0"):
        read_settings(tmp_path, ["lease_min=0"])
    with pytest.raises(UserError, match=r"label\.surprise"):
        read_settings(tmp_path, ["surprise=0"])


def test_a_database_that_cannot_be_used_is_refused_with_what_to_do(tmp_path):
    file = tmp_path / "label.db"
    database = Database.of_file(file)
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE meta SET value = '99'")
    database.close()
    with pytest.raises(UserError, match="newer version"):
        Database.of_file(file)
    (tmp_path / "other.db").write_bytes(b"no database at all " * 100)
    with pytest.raises(UserError, match="hero label backup"):
        Database.of_file(tmp_path / "other.db")
    with pytest.raises(UserError, match="cannot be opened"):
        Database("postgresql+psycopg://nobody@127.0.0.1:1/none")
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:9 / /net rw,relatime shared:1 - nfs4 host:/x rw\n"
    )
    with pytest.raises(UserError, match=r"network file system \(nfs4 at /net\).*postgresql"):
        refuse_network_file_system(Path("/net/runs/one/label.db"), mounts)
    refuse_network_file_system(Path("/network/label.db"), mounts)


def test_an_address_for_other_machines_needs_tls():
    check_address("127.0.0.1", None)
    check_address("0.0.0.0", "https://label.example.org")
    with pytest.raises(UserError, match=r"proxy with TLS"):
        check_address("0.0.0.0", "http://label.example.org")


def test_a_port_in_use_is_named(tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        command = [sys.executable, "-m", "cluster.cli", "label", "serve", tmp_path / "run", f"port={port}"]
        process = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert process.returncode == 2
    assert f"label.port={port}: cannot listen" in process.stderr
