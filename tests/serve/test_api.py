"""The routes of `serve.api` over a replica without engines."""

import types

import pytest
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry, Gauge

from common.errors import FleetError, UserError
from serve.api import create_api
from serve.canary_prompts import GENERAL_PROMPTS
from serve.config import ServeConfig
from serve.example_prompts import example_prompts
from serve.metrics import labelled_families
from serve.versions import locate


class StubReplica:
    """What the handlers need; `broadcast` answers as two replicas of which the second has died."""

    def __init__(self, root):
        engine = types.SimpleNamespace(errored=False, model_config=types.SimpleNamespace(max_model_len=512))
        self.target, self.config, self.started, self.failure = root, ServeConfig(), 7.5, ""
        version = locate(root, "sft-0")
        self.current = types.SimpleNamespace(version=version, engine=engine)
        self.models = {"hero": self.current}
        self.error: Exception | None = None

    async def broadcast(self, method):
        registry = CollectorRegistry()
        Gauge("tokens", "Tokens.", registry=registry).set(3)
        results = {"metrics": labelled_families(registry, "r1"), "state": {"id": "r1"}}
        return [results[method], RuntimeError("the replica died")]

    async def start_promotion(self, version, who, why):
        if self.error:
            raise self.error
        return {"to": version, "who": who, "why": why}

    async def start_rollback(self, who, why):
        return {"to": "before", "who": who, "why": why}


@pytest.fixture
def replica(files):
    return StubReplica(files.root)


@pytest.fixture
def client(replica):
    return TestClient(create_api(replica), raise_server_exceptions=False)


def test_models_name_their_version(client):
    (model,) = client.get("/v1/models").json()["data"]
    expected = {"id": "hero", "version": "sft-0", "max_model_len": 512, "created": 7}
    assert expected.items() <= model.items()


def test_a_model_is_retrieved_by_its_name(client):
    assert client.get("/v1/models/hero").json() == client.get("/v1/models").json()["data"][0]
    unknown = client.get("/v1/models/org/other")
    assert unknown.status_code == 404
    assert unknown.json()["error"]["message"] == "The model `org/other` does not exist; there are hero."


def test_stored_responses_are_refused_with_the_reason(client):
    for answer in (client.get("/v1/responses/resp_1"), client.post("/v1/responses/resp_1/cancel")):
        assert answer.status_code == 404
        assert "answers are not stored here" in answer.json()["error"]["message"]


def test_prompts_to_try_come_from_the_run_else_general_ones(client, files):
    countries = ("France", "Peru", "Chad", "Iran")
    assert sorted(client.get("/prompts.json").json()) == sorted(
        f"What is the capital of {c}?" for c in countries
    )
    general = example_prompts(files.root / "sft" / "model")
    assert len(set(general)) == 4
    assert set(general) <= set(GENERAL_PROMPTS)


def test_a_replica_is_healthy_with_the_current_version(client):
    response = client.get("/health")
    assert (response.status_code, response.json()) == (200, {"status": "ok", "version": "sft-0"})


@pytest.mark.parametrize("fault", ["failure", "dead engine", "other version"])
def test_health_is_503_for_a_replica_that_must_not_serve(client, replica, fault):
    expected = {
        "failure": "half-way",
        "dead engine": "dead engines: ['hero']",
        "other version": "current version of the run: sft-0",
    }
    if fault == "failure":
        replica.failure = "update failed half-way"
    elif fault == "dead engine":
        replica.current.engine.errored = True
    else:
        replica.current.version = locate(replica.target, "ppo-1")
    response = client.get("/health")
    assert response.status_code == 503
    assert expected[fault] in response.json()["detail"]


def test_metrics_and_status_leave_out_a_replica_that_died(client):
    assert 'tokens{replica="r1"} 3.0' in client.get("/metrics").text
    status = client.get("/status.json").json()
    assert status["replicas"] == [{"id": "r1"}]
    assert status["current"] == "sft-0"
    assert {"sft-0", "ppo-1"} <= set(status["versions"])


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (UserError("served already"), 409, "invalid_request_error"),
        (FleetError("half-way"), 500, "server_error"),
        (RuntimeError("half-way"), 500, "server_error"),
    ],
)
def test_the_class_of_an_error_decides_the_status(client, replica, error, status, kind):
    replica.error = error
    response = client.post("/admin/promote", json={"version": "ppo-1"})
    assert response.status_code == status
    assert response.json()["error"] == {"message": str(error), "type": kind, "code": status}


def test_promotion_and_rollback_say_who_and_why(client):
    response = client.post("/admin/promote", json={"version": "ppo-1", "who": "ann", "why": "better"})
    assert response.json() == {"to": "ppo-1", "who": "ann", "why": "better"}
    assert client.post("/admin/rollback", json={}).json() == {"to": "before", "who": "someone", "why": ""}
    assert client.post("/admin/rollback", json={"version": "ppo-1"}).status_code == 422


def test_pages_are_files_of_their_folder_only(client):
    for path in ("/", "/playground", "/status", "/pages/common.js"):
        assert client.get(path).status_code == 200
    assert client.get("/pages/..%2Fapi.py").status_code == 404
