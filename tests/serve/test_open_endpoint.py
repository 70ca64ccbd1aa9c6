"""An endpoint without API keys and without parsers, at a host name: whom it answers, and how it names keys
of the config."""

import httpx
import openai
import pytest

from common.run_paths import RunPaths
from tests.serve.conftest import make_run, start, stop

CHAT = "/v1/chat/completions"
ASK = {"model": "hero", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


@pytest.fixture(scope="module")
def open_endpoint(tmp_path_factory):
    root = tmp_path_factory.mktemp("open") / "run"
    make_run(root)
    running = start(root, "serve.allowed_hosts=[inside.example]", host="localhost", with_key=False)
    yield running
    if running.process.poll() is None:
        stop(running)


def test_the_printed_address_answers(open_endpoint):
    printed = (open_endpoint.root.parent / "serve.log").read_text()
    assert f"{open_endpoint.url}/v1" in printed
    assert open_endpoint.get("/health").json()["status"] == "ok"
    assert open_endpoint.client().chat.completions.create(**ASK).choices


@pytest.mark.parametrize("name", ["evil.example", "evil.example:8000", "192.168.1.7"])
def test_a_name_that_was_bound_to_the_loopback_is_refused(open_endpoint, name):
    for method, path in (("GET", "/"), ("GET", "/v1/models"), ("POST", CHAT), ("POST", "/feedback")):
        answer = httpx.request(method, open_endpoint.url + path, headers={"host": name}, json=ASK)
        assert answer.status_code == 403
        assert name in answer.json()["error"]["message"]


def test_pages_of_other_sites_are_refused_and_own_ones_served(open_endpoint):
    own = open_endpoint.url
    for origin, status in (
        (own, 200),
        ("https://inside.example", 200),
        ("http://evil.example", 403),
        ("null", 403),
    ):
        answer = httpx.post(own + CHAT, json=ASK, headers={"origin": origin}, timeout=60)
        assert answer.status_code == status, origin
    simple = {"origin": "http://evil.example", "content-type": "text/plain"}
    assert httpx.post(f"{own}/feedback", content="{}", headers=simple).status_code == 403
    assert httpx.get(f"{own}/v1/models", headers={"host": "inside.example"}).status_code == 200


@pytest.mark.parametrize(
    ("choice", "key"),
    [
        ("auto", "serve.vllm.enable_auto_tool_choice"),
        ("required", "serve.vllm.tool_call_parser"),
        ({"type": "function", "function": {"name": "weather"}}, "serve.vllm.tool_call_parser"),
    ],
)
def test_tools_without_a_parser_name_the_key_that_is_missing(open_endpoint, choice, key):
    client = open_endpoint.client()
    tool = {"type": "function", **TOOLS[0]["function"]}
    named = choice if isinstance(choice, str) else {"type": "function", "name": "weather"}
    for ask in (
        lambda: client.chat.completions.create(**ASK, tools=TOOLS, tool_choice=choice),
        lambda: client.responses.create(model="hero", input="Hi", tools=[tool], tool_choice=named),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            ask()
        message = caught.value.body["message"]
        assert key in message
        assert "serve.vllm: {enable_auto_tool_choice: true, tool_call_parser: hermes}" in message
        assert "--" not in message


def test_a_template_of_the_request_names_the_key_too(open_endpoint):
    answer = open_endpoint.post(CHAT, {**ASK, "chat_template": "{{ messages }}"})
    assert answer.status_code == 400
    assert "serve.vllm.trust_request_chat_template" in answer.json()["error"]["message"]


def test_the_terminal_shows_our_lines_only(open_endpoint):
    """Nothing of Ray Serve, vLLM or Ray at the start, while it runs and when it stops. The last test here."""
    stop(open_endpoint)
    printed = (open_endpoint.root.parent / "serve.log").read_text()
    usage = printed.partition("serving ")[2].partition("in a browser")[0].splitlines()
    for line in printed.splitlines():
        ours = line.startswith(("dtype: ", "promotions: ", "serving ", "in a browser", "stopping"))
        assert not line.strip() or ours or line in usage, line
    assert (RunPaths(open_endpoint.root).logs / "ray.log").exists()
