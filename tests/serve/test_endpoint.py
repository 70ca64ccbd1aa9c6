"""The OpenAI protocol of the endpoint, with the official client, streaming and not."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from pydantic import BaseModel

from learners.data.tokenizer_loading import load_tokenizer

ASK = {
    "model": "hero",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_tokens": 12,
}


@pytest.fixture(scope="module")
def client(endpoint):
    return endpoint.client()


def test_streamed_and_whole_answers_are_equal_and_versioned(client):
    whole = client.chat.completions.with_raw_response.create(**ASK, temperature=0)
    answer = whole.parse()
    chunks = list(client.chat.completions.create(**ASK, temperature=0, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == answer.choices[0].message.content
    assert (
        whole.headers["x-weight-version"]
        == answer.system_fingerprint
        == chunks[-1].system_fingerprint
        == "sft-0"
    )
    assert answer.usage.completion_tokens <= 12
    assert client.completions.create(model="hero", prompt="The", max_tokens=3).system_fingerprint == "sft-0"


def test_seeds_choices_penalties_and_strategies(client):
    def texts(**settings):
        reply = client.chat.completions.create(**{**ASK, **settings})
        return [choice.message.content for choice in reply.choices]

    assert texts(seed=5, n=3) == texts(seed=5, n=3)
    assert len(set(texts(seed=5, n=3))) == 3
    greedy = texts(temperature=0)
    assert texts(temperature=0) == greedy == texts(extra_body={"top_k": 1})
    for settings in (
        {"top_p": 0.5},
        {"extra_body": {"top_k": 5}},
        {"extra_body": {"min_p": 0.2, "top_k": 50}, "top_p": 0.9},
    ):
        assert texts(seed=1, **settings) == texts(seed=1, **settings)
    # Long enough that tokens repeat, which is what penalties are for.
    long = {"temperature": 0, "max_tokens": 100}
    assert texts(**long, frequency_penalty=2, presence_penalty=2) != texts(**long)


def test_seeded_long_prompts_in_a_batch_answer_as_alone(client):
    """More prompt tokens at once than an engine takes in one step."""
    prompts = [f"{n}. " + "capital of France " * 25 for n in range(24)]

    def answer(prompt: str) -> str:
        return client.completions.create(model="hero", prompt=prompt, seed=3, max_tokens=8).choices[0].text

    with ThreadPoolExecutor(len(prompts)) as pool:
        together = list(pool.map(answer, prompts))
    assert [answer(prompt) for prompt in prompts[:4]] == together[:4]


def test_logprobs_stop_and_schema(endpoint, client):
    choice = client.chat.completions.create(**ASK, temperature=0, logprobs=True, top_logprobs=3).choices[0]
    tokens = choice.logprobs.content
    assert len(tokens) == 12
    assert all(t.logprob <= 0 and len(t.top_logprobs) == 3 for t in tokens)
    text = choice.message.content
    stop = text[len(text) // 2 :][:3]
    stopped = client.chat.completions.create(**ASK, temperature=0, stop=stop).choices[0]
    assert (stopped.finish_reason, stopped.message.content) == ("stop", text[: text.index(stop)])

    class City(BaseModel):
        big: bool

    schema = {"type": "json_schema", "json_schema": {"name": "city", "schema": City.model_json_schema()}}
    # JSON allows white space without end, and a model of random weights would take it.
    tokenizer = load_tokenizer(endpoint.root / "sft" / "model")
    blank = {str(i): -100 for i in range(len(tokenizer)) if tokenizer.decode([i]).isspace()}
    answer = client.chat.completions.create(
        **{**ASK, "max_tokens": 400}, response_format=schema, temperature=1, seed=1, logit_bias=blank
    )
    assert isinstance(City.model_validate_json(answer.choices[0].message.content).big, bool)


def test_models_are_listed_and_an_unknown_one_is_refused(client):
    assert {m.id: m.version for m in client.models.list()} == {"hero": "sft-0", "sft": "sft"}
    assert client.chat.completions.create(**{**ASK, "model": "sft"}).system_fingerprint == "sft"
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        client.chat.completions.create(**{**ASK, "model": "gpt-9"})


def test_one_model_is_retrieved(client):
    assert client.models.retrieve("sft").version == "sft"
    with pytest.raises(openai.NotFoundError, match=r"`gpt-9` does not exist; there are hero, sft"):
        client.models.retrieve("gpt-9")


def test_a_wrong_key_is_refused_and_health_is_open(endpoint, client):
    with pytest.raises(openai.AuthenticationError, match="API key"):
        client.with_options(api_key="hero-wrong").chat.completions.create(**ASK)
    assert endpoint.get("/health").json()["status"] == "ok"


def test_other_routes_of_vllm_and_other_origins_are_closed(endpoint):
    for path in ("/load", "/version", "/docs", "/collective_rpc", "/pause", "/v1/messages", "/invocations"):
        assert endpoint.post(path, {}).status_code in (404, 405)
    answer = endpoint.post("/v1/chat/completions", ASK)
    assert "access-control-allow-origin" not in answer.headers
    page = endpoint.get("/")
    assert page.headers["content-security-policy"].startswith("default-src 'self'")


def test_tokens_of_texts_and_conversations(endpoint):
    tokenizer = load_tokenizer(endpoint.root / "sft" / "model")
    for model in ("hero", "sft"):
        answer = endpoint.post("/tokenize", {"model": model, "messages": ASK["messages"]}).json()
        expected = tokenizer.apply_chat_template(
            ASK["messages"], add_generation_prompt=True, return_dict=False
        )
        assert (answer["tokens"], answer["count"]) == (expected, len(expected))
    tokens = endpoint.post("/tokenize", {"prompt": "France"}).json()["tokens"]
    assert endpoint.post("/detokenize", {"tokens": tokens}).json()["prompt"] == "France"
    assert endpoint.post("/tokenize", {"model": "gpt-9", "prompt": "x"}).status_code == 404


def test_head_answers_without_a_body(endpoint):
    answer = httpx.head(f"{endpoint.url}/health")
    assert (answer.status_code, answer.content) == (200, b"")


def test_metrics_and_status_cover_both_replicas(endpoint):
    text = endpoint.get("/metrics").text
    assert "vllm:time_to_first_token_seconds_bucket" in text
    assert (
        len({line.split('replica="')[1].split('"')[0] for line in text.splitlines() if 'replica="' in line})
        == 2
    )
    status = endpoint.status()
    assert len(status["replicas"]) == 2
    assert sum(r["requests"] for r in status["replicas"]) > 0


def test_the_terminal_chat_talks_to_it(endpoint):
    command = [sys.executable, "-m", "cluster.cli", "chat", f"{endpoint.url}/v1", "--temperature", "0"]
    env = {**os.environ, "OPENAI_API_KEY": endpoint.key}
    result = subprocess.run(command, input=b"Hello \xff!\n/quit\n", capture_output=True, timeout=100, env=env)
    assert (result.returncode, bool(result.stdout.strip())) == (0, True), result.stderr


def test_the_request_of_lm_eval_is_answered(endpoint):
    """The request of lm-eval's chat-completions model, word for word as it posts it."""
    body = {
        "messages": ASK["messages"],
        "model": "hero",
        "max_tokens": 8,
        "temperature": 0,
        "stop": ["\n\n"],
        "seed": 1234,
    }
    answer = endpoint.post("/v1/chat/completions", body)
    assert answer.status_code == 200
    assert isinstance(json.loads(answer.text)["choices"][0]["message"]["content"], str)
