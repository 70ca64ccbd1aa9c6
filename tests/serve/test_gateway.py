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
        version = ModelVersion(Path(), f"{name}-1")
        models[name] = types.SimpleNamespace(app=Echo(name), version=version, flags=frozenset())
    middleware = Gateway(Echo("api"), ServeConfig(**settings), models, digest("secret"))
    transport = httpx.ASGITransport(middleware, client=(client, 1))
    return httpx.AsyncClient(transport=transport, base_url="http://localhost:8000"), middleware


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


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses", "/tokenize", "/feedback"])
async def test_half_a_surrogate_pair_is_refused_anywhere_in_any_body(path):
    client, _ = gateway()
    for body in (
        rb'{"stop": ["\ud83d"]}',
        rb'{"a": [{"b\uDC00": 1}]}',
        b'{"a": "\xed\xa0\xbd"}',
        b'"\\ud83d"',
    ):
        got = await client.post(path, content=body)
        assert (got.status_code, got.json()["error"]["type"]) == (400, "invalid_request_error")
        assert "surrogate" in got.json()["error"]["message"]
    for body in (rb'{"stop": ["\ud83d\ude00"]}', '{"stop": ["😀"]}'.encode(), rb'{"stop": ["\\ud83d"]}'):
        assert (await client.post(path, content=body)).status_code == 200


async def test_head_is_answered_as_get_without_a_body():
    client, _ = gateway()
    got = await client.head("/health")
    assert (got.status_code, got.headers["answered-by"], got.content) == (200, "api", b"")


@pytest.mark.parametrize(
    ("host", "served"),
    [
        ("127.0.0.1:8000", True),
        ("127.0.0.1", True),
        ("LOCALHOST:8000", True),
        ("localhost.:8000", True),
        ("[::1]:8000", True),
        ("box:8000", True),
        ("inside.example", True),
        ("evil.example:8000", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("192.168.1.7:8000", False),
        ("[::1", False),
        ("x y", False),
    ],
)
async def test_without_keys_other_host_names_are_refused(host, served):
    """DNS rebinding: a page of evil.example lets its name point to 127.0.0.1 and asks the endpoint."""
    client, middleware = gateway(host="box", allowed_hosts=["inside.example"])
    for path in ("/", "/health", "/v1/models", "/status.json"):
        got = await client.get(path, headers={"host": host})
        assert got.status_code == (200 if served else 403), got.text
    got = await client.post(CHAT, json={}, headers={"host": host})
    assert got.status_code == (200 if served else 403)
    if not served:
        assert "serve.allowed_hosts" in got.json()["error"]["message"]
        assert middleware.stats.refused == 5


@pytest.mark.parametrize(
    ("origin", "served"),
    [
        ("http://localhost:8000", True),  # the endpoint's own pages
        ("https://inside.example", True),
        ("http://localhost:3000", False),
        ("http://evil.example", False),
        ("null", False),
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/feedback"])
async def test_without_keys_pages_of_other_sites_cannot_post(path, origin, served):
    """A page may post text/plain anywhere without asking first; what it shows is that it is a page."""
    client, _ = gateway(allowed_hosts=["inside.example"])
    headers = {"origin": origin, "content-type": "text/plain"}
    assert (await client.post(path, content="{}", headers=headers)).status_code == (200 if served else 403)


async def test_with_keys_any_name_is_served(keys):
    headers = {"authorization": f"Bearer {add_key(keys, 'ann')}", "host": "chat.example"}
    client, _ = gateway(api_keys=str(keys))
    assert (await client.post(CHAT, json={}, headers=headers)).status_code == 200
    with pytest.raises(ValueError, match=r"allowed_hosts has no effect here, only with no serve.api_keys"):
        ServeConfig(api_keys=str(keys), allowed_hosts=["chat.example"])


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
