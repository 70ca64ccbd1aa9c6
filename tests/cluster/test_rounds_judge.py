"""Comparisons of policies by a judge in place of people."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cluster.config_loader import load_config
from cluster.plan import check_feasible
from cluster.rounds.controller import Rounds
from cluster.rounds.effort import round_effort
from common.errors import UserError
from common.files import read_json, read_jsonl
from common.run_paths import RunPaths
from label.store.batches import list_batches
from label.workplace import Workplace, read_settings
from tests.cluster.test_rounds import go, settings_of
from tests.rounds_stages import run_stages

FUNCTION = 'rounds.judge={kind: function, path: "tests.rounds_stages:score"}'


@pytest.fixture
def endpoint():
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            assert asked["row"]["subject"] == "snow"
            content = json.dumps({"reward": float(asked["response"].startswith("The color"))}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_function_compares_policies_and_people_only_rank(tmp_path):
    root = tmp_path / "run"
    said = go(root, FUNCTION)
    assert "round 2: score compares 110 pairs of answers" in said
    run = RunPaths(root)
    first, second = (read_json(run.round(number).state) for number in (1, 2))
    assert (first["state"], second["state"]) == ("promoted", "promoted")
    assert (first["gate"]["win_rate"]["n"], second["anchor"]["n"]) == (100, 10)
    guards = {guard["name"]: guard["evidence"] for guard in first["gate"]["guards"]}
    assert guards["harm flags"] == "not measured: rounds.judge gives no flags"
    assert "flag sexual" not in guards
    for row in read_jsonl(run.round(2).comparisons):
        assert (row["ranks"][0] < row["ranks"][1]) == (row["scores"][0] > row["scores"][1])
        assert (row["labeler"], row["group"]) == ("score", "judge")
    place = Workplace(root, read_settings(root))
    with place.database.read() as connection:
        assert {row["purpose"] for row in list_batches(connection)} == {"train", "calibration"}
    place.database.close()
    effort = dict(round_effort(load_config(None, settings_of(root, FUNCTION))))
    assert effort["blind comparisons of a round"].endswith("by score")


def test_without_every_score_nothing_is_decided(tmp_path, monkeypatch, endpoint):
    root = tmp_path / "run"
    monkeypatch.setenv("HERO_TEST_NO_SCORE", "1")
    with pytest.raises(UserError, match=r"rounds.judge gave no score for \d+ of \d+ answers .*asks again"):
        go(root, FUNCTION, "rounds.count=1")
    state = RunPaths(root).round(1).state
    assert read_json(state)["state"] == "trained"
    # Another judge would be another gate.
    http = f'rounds.judge={{kind: http, url: "{endpoint}"}}'
    with pytest.raises(UserError, match=r"planned with other settings: rounds\.judge"):
        go(root, http, "rounds.count=1")
    monkeypatch.delenv("HERO_TEST_NO_SCORE")
    go(root, FUNCTION, "rounds.count=1")
    assert read_json(state)["state"] == "promoted"


def test_an_endpoint_compares_policies(tmp_path, endpoint):
    root = tmp_path / "run"
    go(root, f'rounds.judge={{kind: http, url: "{endpoint}"}}', "rounds.count=1")
    assert read_json(RunPaths(root).round(1).state)["state"] == "promoted"


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ('{kind: function, path: "tests.rounds_stages:missing"}', "rounds.judge.path=.* cannot be loaded"),
        ('{kind: judge, base_url: "http://x", model: m, api_key_env: NOT_SET_HERE}', "NOT_SET_HERE"),
        ('{kind: function, path: "a:b", weight: 2}', "weight has no effect here"),
    ],
)
def test_a_judge_that_cannot_work_is_refused_before_anything_is_trained(tmp_path, judge, message):
    root = tmp_path / "run"
    settings = settings_of(root, f"rounds.judge={judge}")
    for use in (check_feasible, lambda config: Rounds(config, run_stages, print).go()):
        with pytest.raises(UserError, match=message):
            use(load_config(None, settings))
    assert not RunPaths(root).stage("sft").model.exists()
