"""Keys, limits and the choice of the model: the real middleware in front of applications that only echo."""

import asyncio
import types
from pathlib import Path

import httpx
import pytest

from common.errors import UserError
from serve.config import ServeConfig
from serve.gateway import Gateway
from serve.keys import ApiKeys, RateLimit, add_key, digest
from serve.launch import application
from serve.versions import ModelVersion

CHAT = "/v1/chat/completions"


class Echo:
    """An application that answers with its name in a header and the request's body."""

    def __init__(self, name):
        self.name = name

    async def __call__(self, scope, receive, send):
        body = (await receive())["body"]
        headers = [(b"answered-by", self.name.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def gateway(client="127.0.0.1", **settings):
    models = {}
    for name in ("hero", "sft"):
        models[name] = types.SimpleNamespace(app=Echo(name), version=ModelVersion(Path(), f"{name}-1"))
    middleware = Gateway(Echo("api"), ServeConfig(**settings), models, digest("secret"))
    transport = httpx.ASGITransport(middleware, client=(client, 1))
    return httpx.AsyncClient(transport=transport, base_url="http://test"), middleware


@pytest.fixture
def keys(tmp_path):
    return tmp_path / "keys"


@pytest.fixture(autouse=True)
def anyio_backend():
    return "asyncio"


pytestmark = pytest.mark.anyio


async def test_the_named_model_answers_and_names_its_version():
    client, middleware = gateway()
    for requested, model in (("hero", "hero"), ("sft", "sft"), ("unknown", "hero"), (None, "hero")):
        got = await client.post(CHAT, json={"model": requested, "x": 1})
        assert (got.headers["answered-by"], got.headers["x-weight-version"]) == (model, f"{model}-1")
        assert got.json() == {"model": requested, "x": 1}
    stats = middleware.stats
    assert (stats.requests, stats.ongoing, stats.failed) == (4, 0, 0)
    assert (await client.post("/feedback", json={})).headers["answered-by"] == "api"


async def test_only_pages_and_health_are_open_without_a_key(keys):
    key = add_key(keys, "ann")
    client, _ = gateway(api_keys=str(keys))
    for path in ("/", "/playground", "/status", "/pages/chat.js", "/health"):
        assert (await client.get(path)).status_code == 200
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": key},
        {"authorization": f"Basic {key}"},
    ):
        for path in (CHAT, "/v1/models", "/status.json", "/metrics", "/feedback", "/openapi.json"):
            got = await client.post(path, json={}, headers=headers)
            assert got.status_code == 401
            assert "API key" in got.json()["error"]["message"]
    assert (await client.post(CHAT, json={}, headers={"authorization": f"Bearer {key}"})).status_code == 200


async def test_removing_its_line_revokes_a_key_at_once(keys):
    ann, bob = add_key(keys, "ann"), add_key(keys, "bob")
    client, _ = gateway(api_keys=str(keys))
    assert ann not in keys.read_text()
    keys.write_text(keys.read_text().splitlines()[1] + "\n")
    codes = [
        (await client.get("/v1/models", headers={"authorization": f"Bearer {k}"})).status_code
        for k in (ann, bob)
    ]
    assert codes == [401, 200]


async def test_without_keys_only_this_machine_is_served():
    assert (await gateway("10.1.2.3")[0].post(CHAT, json={})).status_code == 401
    assert (await gateway("127.0.0.1")[0].post(CHAT, json={})).status_code == 200


async def test_only_the_admin_token_promotes(keys):
    client, _ = gateway(api_keys=str(keys) if add_key(keys, "ann") else None)
    for token, status in (("secret", 200), ("other", 401)):
        assert (
            await client.post("/admin/promote", json={}, headers={"authorization": f"Bearer {token}"})
        ).status_code == status
    assert (await gateway()[0].post("/admin/promote", json={})).status_code == 401


async def test_a_key_over_its_rate_gets_429_with_retry_after(keys):
    ann, bob = add_key(keys, "ann"), add_key(keys, "bob")
    client, _ = gateway(api_keys=str(keys), requests_per_minute=6, replicas=2)
    ask = {name: {"authorization": f"Bearer {k}"} for name, k in (("ann", ann), ("bob", bob))}
    codes = [(await client.post(CHAT, json={}, headers=ask["ann"])).status_code for _ in range(5)]
    assert codes == [200, 200, 200, 429, 429]
    late = await client.post(CHAT, json={}, headers=ask["ann"])
    assert 1 <= int(late.headers["retry-after"]) <= 20
    assert (await client.post(CHAT, json={}, headers=ask["bob"])).status_code == 200


async def test_a_full_replica_refuses_requests_but_not_other_routes():
    started, go_on = asyncio.Event(), asyncio.Event()

    async def slow(scope, receive, send):
        started.set()
        await go_on.wait()
        await Echo("slow")(scope, receive, send)

    client, middleware = gateway(max_ongoing=1)
    middleware.models["hero"].app = slow
    first = asyncio.create_task(client.post(CHAT, json={"model": "hero"}))
    await started.wait()
    refused = await client.post(CHAT, json={"model": "sft"})
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert (await client.get("/status.json")).status_code == 200
    go_on.set()
    assert (await first).status_code == 200
    assert (await client.post(CHAT, json={"model": "sft"})).status_code == 200


async def test_long_bodies_and_invalid_json_are_refused():
    client, middleware = gateway(max_body_kib=1)
    assert (await client.post(CHAT, content=b"x" * 1025)).status_code == 413
    for body in (b"", b"{", b"\xff\xfe", b'{"a": "\xc3"}', b"[" * 1000):
        got = await client.post(CHAT, content=body)
        assert got.status_code == 400
        assert "not valid JSON" in got.json()["error"]["message"]
    assert middleware.stats.ongoing == 0


def test_a_rate_limit_bucket_fills_at_its_rate(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    limit = RateLimit(per_minute=2)
    assert [limit.wait("a"), limit.wait("a"), limit.wait("a")] == [0, 0, pytest.approx(30)]
    now[0] = 29.0
    assert limit.wait("a") == pytest.approx(1)
    now[0] = 30.0
    assert limit.wait("a") == 0


def test_errors_in_a_key_file_are_reported(keys):
    with pytest.raises(UserError, match="no such file of API keys; make one with"):
        ApiKeys(keys)
    add_key(keys, "ann")
    with pytest.raises(UserError, match="has a key named ann already"):
        add_key(keys, "ann")
    with pytest.raises(UserError, match="word without spaces"):
        add_key(keys, "ann b")
    keys.write_text(keys.read_text() + "plain-text-key\n")
    with pytest.raises(UserError, match="line 2: expected `NAME SHA256`"):
        ApiKeys(keys)


def test_a_public_address_needs_keys(files):
    with pytest.raises(UserError, match=r"can be reached from other machines, so API keys are needed"):
        application(files.root, ServeConfig(host="0.0.0.0"))
