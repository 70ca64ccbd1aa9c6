"""The responses protocol, which the official client uses first today, and tools."""

import json

import openai
import pytest

from learners.data.tokenizer_loading import load_tokenizer

QUESTION = "What is the capital of France?"
ASK = {"model": "hero", "input": QUESTION, "max_output_tokens": 12, "temperature": 0}
TOOL = {
    "name": "weather",
    "description": "Weather of a city",
    "strict": True,  # else any JSON may stand for the arguments
    "parameters": {
        "type": "object",
        "properties": {"rain": {"type": "boolean"}},
        "required": ["rain"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def client(endpoint):
    return endpoint.client()


def chat_text(client, *messages, **settings):
    rows = [{"role": role, "content": content} for role, content in messages]
    settings = {"model": "hero", "max_tokens": 12, "temperature": 0, **settings}
    return client.chat.completions.create(messages=rows, **settings).choices[0].message.content


def served_version(client):
    """By the chat protocol; other tests of this endpoint promote versions."""
    messages = [{"role": "user", "content": QUESTION}]
    return client.chat.completions.create(model="hero", messages=messages, max_tokens=1).system_fingerprint


def test_it_answers_what_chat_answers_and_names_its_version(client):
    raw = client.responses.with_raw_response.create(**ASK)
    answer = raw.parse()
    assert answer.output_text == chat_text(client, ("user", QUESTION))
    assert raw.headers["x-weight-version"] == answer.system_fingerprint == served_version(client)
    assert 0 < answer.usage.output_tokens <= 12
    assert answer.model == "hero"
    assert client.responses.create(**{**ASK, "model": "sft"}).system_fingerprint == "sft"
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        client.responses.create(**{**ASK, "model": "gpt-9"})


def test_its_stream_gives_the_same_text_in_parts(client):
    events = list(client.responses.create(**ASK, stream=True))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    assert text == events[-1].response.output_text == client.responses.create(**ASK).output_text
    assert events[-1].response.system_fingerprint == served_version(client)


NULLABLE = (
    "background",
    "include",
    "instructions",
    "metadata",
    "parallel_tool_calls",
    "previous_response_id",
    "reasoning",
    "store",
    "text",
    "top_logprobs",
    "top_p",
    "truncation",
    "user",
)


def test_null_is_what_is_left_out(client):
    """In every field that the protocol has as one that may be null."""
    expected = client.responses.create(**ASK).output_text
    nulls = dict.fromkeys(NULLABLE)
    assert client.responses.create(**ASK, stream=None, **nulls).output_text == expected
    events = list(client.responses.create(**ASK, stream=True, **nulls))
    assert (events[-1].type, events[-1].response.output_text) == ("response.completed", expected)


def test_instructions_and_lists_are_the_messages_of_a_conversation(client):
    turns = [("user", "Hello!"), ("assistant", "Hi."), ("user", QUESTION)]
    rows = [{"role": role, "content": content} for role, content in turns]
    answer = client.responses.create(**{**ASK, "input": rows}, instructions="Be brief.")
    assert answer.output_text == chat_text(client, ("system", "Be brief."), *turns)
    parts = [{"role": "user", "content": [{"type": "input_text", "text": QUESTION}]}]
    assert client.responses.create(**{**ASK, "input": parts}).output_text == chat_text(
        client, ("user", QUESTION)
    )


def test_output_of_a_tool_is_a_message_as_text_or_in_parts(endpoint):
    """Also in the form in which an answer has it, with an id and a status."""
    call = {"type": "function_call", "name": "weather", "call_id": "c", "arguments": "{}"}
    texts = []
    for output in ("Dry.", [{"type": "input_text", "text": "Dry."}]):
        for form in ({}, {"id": "o", "status": "completed"}):
            result = {"type": "function_call_output", "call_id": "c", "output": output, **form}
            ask = {**ASK, "input": [{"role": "user", "content": QUESTION}, call, result]}
            answer = endpoint.post("/v1/responses", ask)
            assert answer.status_code == 200, answer.text[:300]
            texts.append(answer.json()["output"][0]["content"][0]["text"])
    assert len(set(texts)) == 1


def test_earlier_answers_are_not_stored(client):
    first = client.responses.create(**ASK)
    with pytest.raises(openai.NotFoundError, match="answers are not stored here"):
        client.responses.create(**ASK, previous_response_id=first.id)
    for action in (client.responses.retrieve, client.responses.cancel):
        with pytest.raises(openai.NotFoundError, match="answers are not stored here"):
            action(first.id)
    with pytest.raises(openai.BadRequestError, match="answers are not stored here"):
        client.responses.create(**ASK, background=True)


TEXT = {"type": "output_text", "text": "Hi.", "annotations": []}
ANSWER = {"type": "message", "id": "m", "role": "assistant", "status": "completed"}


@pytest.mark.parametrize(
    "change",
    [
        {"max_output_tokens": -1},
        {"temperature": -1},
        {"temperature": 9},
        {"input": []},
        {"input": 5},
        {"input": [{"role": "user"}]},
        {"input": "word " * 2000},
        {"input": [{**ANSWER, "content": [{"type": "refusal", "refusal": "No."}]}]},
        {"input": [{**ANSWER, "content": []}]},
        {"input": [{**ANSWER, "content": [TEXT, TEXT]}]},
        {"input": [{"role": "assistant", "content": [TEXT, TEXT]}]},
        {"tools": [{"type": "function"}]},
        {"tools": [{"type": "web_search"}]},
        {"tools": [{"type": "mcp", "server_label": "x", "server_url": "http://x.example"}]},
        {"conversation": "conv_1"},
        {"top_p": 7},
        {"previous_response_id": "x"},
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "nothing"}}}},
    ],
)
def test_wrong_fields_are_refused_with_a_reason(endpoint, change):
    answer = endpoint.post("/v1/responses", {**ASK, **change})
    assert 400 <= answer.status_code < 500, answer.text[:300]
    assert answer.json()["error"]["message"]


def test_what_the_engine_refuses_ends_a_stream_with_an_error(client):
    ask = {**ASK, "stream": True, "extra_body": {"stop_token_ids": [10**6]}}
    *_, last = client.responses.create(**ask)
    assert (last.type, last.code) == ("error", "BadRequestError")
    assert "1000000" in last.message


def test_requests_and_tokens_are_counted(endpoint, client):
    def counts():
        replicas = endpoint.status()["replicas"]
        tokens = sum(model["tokens"] for r in replicas for model in r["models"].values())
        return sum(r["requests"] for r in replicas), tokens

    requests, tokens = counts()
    used = client.responses.create(**ASK).usage.output_tokens
    assert counts() == (requests + 1, tokens + used)
    with pytest.raises(openai.AuthenticationError, match="API key"):
        client.with_options(api_key="hero-wrong").responses.create(**ASK)


def test_tools_are_called_where_a_parser_is_named(endpoint, client):
    """Random weights call no tool by themselves, but a required call is valid."""
    # JSON allows white space and further calls without end, and a model of random weights would take
    # them: white space is made improbable, and the end of the list wherever it may come probable.
    tokenizer = load_tokenizer(endpoint.root / "sft" / "model")
    bias = {}
    for i in range(len(tokenizer)):
        text = tokenizer.decode([i])
        if text.isspace():
            bias[str(i)] = -100
        elif text in ("]", "}"):
            bias[str(i)] = 100
    # The other model, whose answers have no limit of the server's.
    ask = {"model": "sft", "messages": [{"role": "user", "content": QUESTION}], "seed": 1}
    ask |= {"max_tokens": 400, "logit_bias": bias}
    tools = [{"type": "function", "function": TOOL}]
    named = {"type": "function", "function": {"name": "weather"}}
    for choice in ("required", named):
        answer = client.chat.completions.create(**ask, tools=tools, tool_choice=choice).choices[0]
        (call,) = answer.message.tool_calls[:1]
        assert call.function.name == "weather"
        assert isinstance(json.loads(call.function.arguments)["rain"], bool)
    for choice in ("auto", "none"):
        client.chat.completions.create(**ask, tools=tools, tool_choice=choice)
    client.responses.create(**ASK, tools=[{"type": "function", **TOOL}])
