"""Whatever is sent, the endpoint answers or refuses it with 4xx and a message: no 5xx, hang or leak."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error

from tests.serve.conftest import wait_for

CHAT = "/v1/chat/completions"
ASK = {"model": "hero", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
QUICK = settings(max_examples=60, suppress_health_check=list(HealthCheck))

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
PATHS = (CHAT, "/v1/completions", "/v1/responses", "/tokenize", "/detokenize", "/feedback")
RESPONSES_FIELDS = (
    "input",
    "instructions",
    "max_output_tokens",
    "temperature",
    "top_p",
    "top_k",
    "top_logprobs",
    "include",
    "text",
    "reasoning",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "max_tool_calls",
    "metadata",
    "model",
    "previous_response_id",
    "previous_input_messages",
    "prompt",
    "service_tier",
    "store",
    "stream",
    "background",
    "truncation",
    "user",
    "stop",
    "seed",
    "logit_bias",
    "structured_outputs",
    "cache_salt",
    "request_id",
    "priority",
    "ignore_eos",
    "conversation",
    "chat_template_kwargs",
    "vllm_xargs",
)
FIELDS = (
    "messages",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "n",
    "seed",
    "stop",
    "logprobs",
    "top_logprobs",
    "presence_penalty",
    "repetition_penalty",
    "logit_bias",
    "response_format",
    "stream",
    "stream_options",
    "model",
    "tools",
    "stop_token_ids",
    "ignore_eos",
    "min_tokens",
    "prompt_logprobs",
    "allowed_token_ids",
    "bad_words",
    "user",
)


def check_served_or_refused(answer: httpx.Response) -> None:
    """Served, or refused with a reason."""
    assert answer.status_code < 500, (answer.status_code, answer.text[:500])
    if answer.status_code >= 400:
        assert answer.text.strip()


@pytest.fixture(scope="module")
def client(endpoint):
    with httpx.Client(base_url=endpoint.url, headers=endpoint.headers, timeout=60) as client:
        yield client


@pytest.mark.parametrize("examples", [60, pytest.param(600, marks=pytest.mark.slow)])
def test_no_generated_request_of_the_schema_gives_5xx(endpoint, client, examples):
    """The slow one draws others every time."""
    document = client.get("/openapi.json").json()
    assert {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/tokenize",
        "/feedback",
        "/v1/models",
        "/admin/promote",
    } <= document["paths"].keys()
    schema = schemathesis.openapi.from_dict(document)
    counts: dict[int, int] = {}
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(QUICK, max_examples=examples, derandomize=examples == 60)
        @given(case=operation.as_strategy())
        def check(case):
            answer = case.call(base_url=endpoint.url, headers=endpoint.headers, timeout=60)
            counts[answer.status_code] = counts.get(answer.status_code, 0) + 1
            case.validate_response(answer, checks=[not_a_server_error])

        check()
    print(f"\nschemathesis: {sum(counts.values())} requests, by status {dict(sorted(counts.items()))}")


@QUICK
@given(name=st.sampled_from(FIELDS), value=JSON)
def test_any_value_of_any_field_is_served_or_refused(client, name, value):
    check_served_or_refused(client.post(CHAT, json={**ASK, name: value}))


@QUICK
@given(name=st.sampled_from(RESPONSES_FIELDS), value=JSON)
def test_any_value_of_any_field_of_responses_is_served_or_refused(client, name, value):
    ask = {"model": "hero", "input": "Hi", "max_output_tokens": 4}
    check_served_or_refused(client.post("/v1/responses", json={**ask, name: value}))


@QUICK
@given(body=JSON)
def test_any_json_is_served_or_refused(client, body):
    for path in PATHS:
        check_served_or_refused(client.post(path, json=body))


@QUICK
@given(body=st.binary(max_size=200), path=st.sampled_from(PATHS))
def test_any_bytes_are_refused(client, body, path):
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    check_served_or_refused(answer)
    assert answer.status_code >= 400


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
@pytest.mark.parametrize("path", PATHS)
def test_numbers_that_json_does_not_have_are_refused(client, path, number):
    body = f'{{"messages": {number}, "comment": {number}, "logit_bias": {{"3": {number}}}}}'
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert "not valid JSON" in answer.text


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"messages": [{"role": "user", "content": "word " * 2000}]}, 400, "maximum"),
        ({"messages": [{"role": "user", "content": "x" * 70_000}]}, 413, "64 KiB"),
        ({"max_tokens": -1}, 400, "max_tokens"),
        ({"max_tokens": 10**9}, 400, "max_tokens"),
        ({"temperature": -1}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
        ({"n": 5}, 400, "n must be"),
        ({"model": "nobody"}, 404, "nobody"),
        ({"messages": "hello"}, 400, "messages"),
    ],
)
def test_invalid_fields_are_named_in_the_error(client, change, status, message):
    answer = client.post(CHAT, json={**ASK, **change})
    assert (answer.status_code, message in answer.text) == (status, True), answer.text[:500]


def in_flight(endpoint) -> float:
    return endpoint.metric("vllm:num_requests_running") + endpoint.metric("vllm:num_requests_waiting")


def streaming(endpoint) -> socket.socket:
    """A raw connection on which a long stream has begun."""
    body = json.dumps({**ASK, "max_tokens": 490, "stream": True, "ignore_eos": True}).encode()
    host, port = endpoint.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {endpoint.key}\r\n"
    head += "Content-Type: application/json\r\n"
    connection.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
    assert b"200 OK" in connection.recv(100)
    return connection


def test_a_request_whose_client_disconnects_is_aborted(endpoint):
    connections = [streaming(endpoint) for _ in range(8)]
    for connection in connections:
        connection.close()
    wait_for(lambda: in_flight(endpoint) == 0, 10, "engines without requests")
    assert sum(r["ongoing"] for r in endpoint.status()["replicas"]) == 0


def test_slow_readers_do_not_delay_other_requests(endpoint, client):
    slow = [streaming(endpoint) for _ in range(8)]  # and read no further
    started = time.monotonic()
    for _ in range(10):
        assert client.post(CHAT, json=ASK).status_code == 200
    assert time.monotonic() - started < 30
    wait_for(lambda: in_flight(endpoint) == 0, 60, "engines done with slow readers")
    for connection in slow:
        connection.close()


def footprint(endpoint) -> list[tuple[float, int]]:
    """(MiB, open files) of each replica with its engines."""
    footprints = []
    for replica in sorted(endpoint.status()["replicas"], key=lambda r: r["pid"]):
        process = psutil.Process(replica["pid"])
        family = [process, *process.children(recursive=True)]
        footprints.append(
            (sum(p.memory_full_info().uss for p in family) / 2**20, sum(p.num_fds() for p in family))
        )
    return footprints


@pytest.mark.parametrize("count", [400, pytest.param(2000, marks=pytest.mark.slow)])
def test_many_requests_leak_no_memory_or_files(endpoint, count):
    def one(i: int) -> int:
        with httpx.Client(base_url=endpoint.url, headers=endpoint.headers, timeout=120) as client:
            return client.post(CHAT, json={**ASK, "stream": i % 2 == 0, "temperature": i % 3}).status_code

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(one, range(300))) == {200}  # caches and pools fill up
        before = footprint(endpoint)
        assert set(pool.map(one, range(count))) == {200}
    wait_for(lambda: in_flight(endpoint) == 0, 10, "engines without requests")
    after = footprint(endpoint)
    print(f"\n(MiB, files) by replica before {before} and after {count:,} requests {after}")
    for (memory, files), (memory_after, files_after) in zip(before, after, strict=True):
        assert memory_after < memory + 30
        assert files_after <= files + 8
    assert sum(r["ongoing"] for r in endpoint.status()["replicas"]) == 0
