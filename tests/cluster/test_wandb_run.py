"""W&B that is out of reach, refuses the key or dies: the stage goes on, its metrics are there, and one line
says how to upload. W&B itself is the real one, in front of a small server of its interface."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest

from cluster.run import wandb_run
from cluster.run.monitor import Monitor
from cluster.run.wandb_run import WandbRun
from tests.runs import free_port

KEY = "a" * 40


class WandbServer(BaseHTTPRequestHandler):
    """Answers what an online run asks for; every request is refused if the server has `refuses`."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = {}
        if self.path == "/graphql":
            data = self.answer(json.loads(body))
        content = json.dumps({"data": data}).encode()
        self.send_response(401 if self.server.refuses else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST

    def answer(self, request):
        query = request["query"]
        if "RunResumeStatus" in query:
            return {"model": {"entity": {"name": "e"}, "name": "p", "bucket": None}}
        if "UpsertBucket" in query:
            project = {"id": "1", "name": "p", "entity": {"id": "1", "name": "e"}}
            bucket = {"id": "1", "name": "r", "displayName": "r", "config": "{}", "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "CreateRunFiles" in query:
            url = f"http://127.0.0.1:{self.server.server_port}/"
            files = [{"name": name, "uploadUrl": url + name} for name in request["variables"]["files"]]
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
        return {}

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), WandbServer) as server:
        server.refuses = False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def online(monkeypatch, request):
    """Sets the environment of an online run at a port."""
    monkeypatch.setattr(WandbRun, "_unreachable", False)
    # A server that is there may answer slowly on a busy machine; one that is not there never does.
    patience = 60.0 if "server" in request.fixturenames else 3.0
    monkeypatch.setattr(wandb_run, "START_TIMEOUT_S", patience)
    monkeypatch.setattr(wandb_run, "FINISH_TIMEOUT_S", 2.0)
    monkeypatch.delenv("WANDB_MODE", raising=False)

    def at(port, key=KEY):
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("WANDB_API_KEY", key)

    yield at
    wandb_run._reset()


def logged(root):
    return [json.loads(line)["loss/train"] for line in (root / "metrics.jsonl").read_text().splitlines()]


def kill_service():
    for child in psutil.Process().children(recursive=True):
        if "wandb-core" in " ".join(child.cmdline()):
            child.kill()
            child.wait()


def test_unreachable_server_makes_the_run_offline_and_is_not_asked_again(tmp_path, online, capfd):
    online(free_port())
    started = time.monotonic()
    with Monitor(tmp_path, "sft", "x", {}) as monitor:
        monitor.log(1, {"loss/train": 1.0})
    assert time.monotonic() - started < 20
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("W&B cannot be used (CommError: ")
    assert line.endswith(f"recorded offline; upload what it has later: wandb sync {folder}")
    with Monitor(tmp_path, "ppo", "x", {}) as monitor:
        monitor.log(1, {"loss/train": 2.0})
    assert capfd.readouterr().err == ""
    assert len(list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))) == 2
    assert logged(tmp_path) == [1.0, 2.0]


@pytest.mark.parametrize("key", ["short", KEY])
def test_refused_key_makes_the_run_offline(tmp_path, server, online, capfd, key):
    server.refuses = True
    online(server.server_port, key)
    with Monitor(tmp_path, "sft", "x", {}) as monitor:
        monitor.log(1, {"loss/train": 1.0})
    assert "W&B cannot be used (" in capfd.readouterr().err
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 1


def test_wandb_that_dies_in_the_middle_does_not_end_the_stage(tmp_path, server, online, capfd):
    online(server.server_port)
    model = tmp_path / "model"
    model.mkdir()
    with Monitor(tmp_path, "sft", "x", {}) as monitor:
        monitor.log(1, {"loss/train": 1.0})
        kill_service()
        # The socket may take one more call before it is known to be closed.
        for step in (2, 3, 4):
            monitor.log(step, {"loss/train": float(step)})
        monitor.samples(4, [{"prompt": "p", "text": "t"}])
        monitor.alarm(4, "kl", "12 nats")
        monitor.lineage([tmp_path / "metrics.jsonl"], [model])
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("W&B stopped working (")
    assert "wandb sync" in line
    assert logged(tmp_path) == [1.0, 2.0, 3.0, 4.0]
    assert (tmp_path / "sft" / "alarms.jsonl").exists()
    with Monitor(tmp_path, "ppo", "x", {}) as monitor:
        monitor.log(1, {"loss/train": 5.0})
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 1


def test_network_that_is_lost_delays_the_end_of_a_stage_by_the_timeout_only(tmp_path, server, online, capfd):
    online(server.server_port)
    with Monitor(tmp_path, "sft", "x", {}) as monitor:
        monitor.log(1, {"loss/train": 1.0})
        assert len(list((tmp_path / "wandb").glob("run-*"))) == 1
        server.shutdown()
        server.server_close()
        monitor.log(2, {"loss/train": 2.0})
        started = time.monotonic()
    assert time.monotonic() - started < 15
    assert "wandb sync" in capfd.readouterr().err
    assert logged(tmp_path) == [1.0, 2.0]


@pytest.mark.parametrize(("mode", "folders"), [("disabled", 0), ("offline", 1), ("nonsense", 0)])
def test_mode_of_the_environment(tmp_path, online, monkeypatch, capfd, mode, folders):
    online(free_port())
    monkeypatch.setenv("WANDB_MODE", mode)
    started = time.monotonic()
    model = tmp_path / "model"
    model.mkdir()
    with Monitor(tmp_path, "sft", "x", {}) as monitor:
        monitor.log(1, {"loss/train": 1.0})
        monitor.samples(1, [{"prompt": "p"}, {"prompt": "q", "score": 1.0}])
        monitor.alarm(1, "kl", "12 nats")
        monitor.lineage([model], [model])
    assert time.monotonic() - started < 10
    # Nothing but an unknown mode is worth a line.
    assert ("W&B" in capfd.readouterr().err) == (mode == "nonsense")
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == folders
    assert logged(tmp_path) == [1.0]
