"""Stored versions: which one is served, which may be promoted, which are kept, and how the pointer moves."""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from common.errors import UserError
from common.files import PARTIAL_SUFFIX
from common.run_paths import RunPaths
from serve import promotion
from serve.manifest import verify
from serve.versions import (
    current_policy,
    list_promotions,
    list_versions,
    live_endpoint,
    locate,
    set_current,
    store,
)
from tests.runs import free_port


@pytest.fixture
def run(tmp_path):
    model = tmp_path / "ppo" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (tmp_path / "current.json").write_text(json.dumps({"stage": "ppo", "version": 7, "path": "ppo/model"}))
    return tmp_path


@pytest.fixture
def copy(files, tmp_path):
    """The run of the conftest, to be changed."""
    return shutil.copytree(files.root, tmp_path / "copy")


def test_a_run_is_its_current_policy(run):
    version = current_policy(run)
    assert (version.folder, version.name) == (run / "ppo" / "model", "ppo-7")


def test_a_model_folder_is_itself(run):
    assert current_policy(run / "ppo" / "model").name == "model"


def test_errors_say_what_cannot_be_served(run, tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        current_policy(tmp_path / "nothing")
    with pytest.raises(UserError, match="nothing to serve yet"):
        current_policy(run / "ppo")
    (run / "ppo" / "model" / "config.json").unlink()
    with pytest.raises(UserError, match="run the ppo stage again"):
        current_policy(run)


def test_a_model_is_located_by_version_stage_or_folder(files):
    assert locate(files.root, "ppo-1").folder == files.root / "versions" / "ppo-1"
    assert locate(files.root, "sft").folder == files.root / "sft" / "model"
    assert locate(files.root, str(files.root / "sft" / "model")).name == "model"
    with pytest.raises(UserError, match=r"neither a version .*ppo-1, ppo-2.* nor one of its stages"):
        locate(files.root, "ppo-9")


def test_changed_missing_and_unsuitable_files_are_refused(copy):
    versions = copy / "versions"
    verify(versions / "ppo-1", versions / "sft-0")
    with pytest.raises(UserError, match=r"another architecture .*: \[.*\] instead of \[.*\]"):
        verify(versions / "wide-1", versions / "sft-0")
    weights = versions / "ppo-1" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.unlink()
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"ppo-1/model\.safetensors: missing, or changed since it was stored"):
        verify(versions / "ppo-1", versions / "sft-0")
    weights.unlink()
    with pytest.raises(UserError, match="missing, or changed"):
        promotion.promote(copy, "ppo-1", "why")
    assert current_policy(copy).name == "sft-0"


def test_old_versions_are_removed_unless_needed(copy):
    set_current(copy, "ppo-1", who="test", why="")
    for number in (5, 6, 7):
        store(copy, f"ppo-{number}", copy / "sft" / "model", newest=2, pinned=["wide-1"])
    assert sorted(list_versions(copy)) == ["ppo-1", "ppo-6", "ppo-7", "sft-0", "wide-1"]


def test_promotion_and_rollback_move_the_pointer_and_are_logged(copy):
    assert promotion.promote(copy, "ppo-2", "better")["to"] == "ppo-2"
    assert promotion.promote(copy, "ppo-1", "even better")["from"] == "ppo-2"
    assert promotion.rollback(copy, "it was not")["to"] == "ppo-2"
    assert current_policy(copy).name == "ppo-2"
    assert promotion.rollback(copy, "nor was that")["to"] == "sft-0"  # not ppo-1, which was rolled back
    rows = [(p["from"], p["to"], p["why"]) for p in list_promotions(copy)[1:]]
    assert rows == [
        ("sft-0", "ppo-2", "better"),
        ("ppo-2", "ppo-1", "even better"),
        ("ppo-1", "ppo-2", "it was not"),
        ("ppo-2", "sft-0", "nor was that"),
    ]
    with pytest.raises(UserError, match=r"has no version ppo-9 \(available: "):
        promotion.promote(copy, "ppo-9", "")


def test_versions_keep_their_order_when_the_clock_goes_back(copy, monkeypatch):
    before = list_versions(copy)
    monkeypatch.setattr("serve.manifest.time.time", lambda: 1.0)  # that of the next driver's host
    store(copy, "ppo-8", copy / "sft" / "model", newest=9)
    store(copy, "ppo-9", copy / "sft" / "model", newest=9)
    assert list_versions(copy) == [*before, "ppo-8", "ppo-9"]


def test_a_run_of_an_older_layout_is_refused(run):
    paths = RunPaths(run)
    paths.config.write_text("{}")
    sentence = r"this run directory has the layout of an older version"
    for refused in (
        lambda: current_policy(run),
        lambda: promotion.promote(run, None, ""),
        lambda: promotion.rollback(run, ""),
    ):
        with pytest.raises(UserError, match=sentence):
            refused()
    paths.write_layout()
    assert current_policy(run).name == "ppo-7"


def test_a_model_folder_with_a_config_yaml_is_no_run(run):
    folder = run / "ppo" / "model"
    (folder / "config.yaml").write_text("{}")  # some published models have such a file
    assert current_policy(folder).folder == folder


def test_what_a_crash_left_of_a_version_is_not_listed_and_removed(copy):
    versions = RunPaths(copy).versions
    before = list_versions(copy)
    partial = versions / f"ppo-9.123{PARTIAL_SUFFIX}"
    shutil.copytree(versions / "ppo-1", partial)
    assert list_versions(copy) == before
    store(copy, "ppo-8", copy / "sft" / "model", newest=9)
    assert list_versions(copy) == [*before, "ppo-8"]
    assert not partial.exists()


class DeadEndProxy(BaseHTTPRequestHandler):
    """A proxy of a company, which cannot reach this machine."""

    def do_GET(self):
        self.send_error(502)

    do_POST = do_GET

    def log_message(self, *_):
        pass


def test_a_proxy_does_not_answer_for_an_endpoint_that_is_gone(copy, monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), DeadEndProxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_port}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    endpoint = {"url": f"http://127.0.0.1:{free_port()}", "token": "t"}
    (copy / "endpoint.json").write_text(json.dumps(endpoint))
    assert live_endpoint(copy) is None
    assert promotion.promote(copy, "ppo-2", "a test")["outcome"] == "promoted"
    # One that listens is live, whatever it answers.
    endpoint["url"] = f"http://127.0.0.1:{server.server_port}"
    (copy / "endpoint.json").write_text(json.dumps(endpoint))
    assert live_endpoint(copy) == endpoint
    server.shutdown()
