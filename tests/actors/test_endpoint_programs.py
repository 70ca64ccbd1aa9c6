"""Programs that drive episodes by OpenAI's protocol, with the plain client."""

import httpx
import pytest
from openai import BadRequestError, OpenAI

from actors.environments.endpoint import ProgramEnvironment, shared_endpoint
from cluster.recipes.agent import solve

ROW = {"prompt": "What is 17 + 48 + 35?", "answer": "100"}


def call(name, **arguments):
    function = {"name": name, "arguments": arguments}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "call00000", "type": "function", "function": function}],
    }


def say(text):
    return {"role": "assistant", "content": text}


def client_of(base_url, api_key):
    return OpenAI(base_url=base_url, api_key=api_key, max_retries=0)


def test_an_agent_with_tools_becomes_an_episode():
    environment = ProgramEnvironment(solve)
    messages, info = environment.reset(seed=1, options={"row": ROW})
    assert messages == [{"role": "user", "content": ROW["prompt"]}]
    assert [tool["function"]["name"] for tool in info["tools"]] == ["add", "price"]
    observation, reward, terminated, *_ = environment.step(call("add", a=17, b=48))
    assert observation == [{"role": "tool", "tool_call_id": "call00000", "content": "65"}]
    assert (reward, terminated) == (0.0, False)
    environment.step(call("add", a=65, b=35))
    observation, reward, terminated, truncated, info = environment.step(say("100"))
    assert (observation, reward, terminated, truncated, info) == ([], 1.0, True, False, {"result": 1.0})


def test_the_same_environment_runs_one_episode_after_another():
    environment = ProgramEnvironment(solve)
    environment.reset(options={"row": ROW})  # never answered
    for answer, expected in (("100", 1.0), ("99", 0.0)):
        environment.reset(options={"row": ROW})
        assert environment.step(say(answer))[1] == expected
    assert len(shared_endpoint().episodes) == 0


def streaming(row, base_url, api_key):
    chunks = client_of(base_url, api_key).chat.completions.create(
        model="policy", messages=[{"role": "user", "content": "Hi"}], stream=True
    )
    return len("".join(chunk.choices[0].delta.content or "" for chunk in chunks))


def test_a_program_may_stream():
    environment = ProgramEnvironment(streaming)
    environment.reset()
    assert environment.step(say("Hello"))[1] == 5.0


def rewriting(row, base_url, api_key):
    client = client_of(base_url, api_key)
    for text in ("one", "two"):
        client.chat.completions.create(model="policy", messages=[{"role": "user", "content": text}])


def two_at_a_time(row, base_url, api_key):
    import threading

    client, errors = client_of(base_url, api_key), []

    def ask():
        try:
            client.chat.completions.create(model="policy", messages=[{"role": "user", "content": "Hi"}])
        except BadRequestError as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    threads[0].join()
    threads[1].join()
    return len(errors)


def raising(row, base_url, api_key):
    raise RuntimeError("the program is broken")


def test_a_conversation_that_does_not_go_on_is_refused():
    environment = ProgramEnvironment(rewriting)
    environment.reset()
    with pytest.raises(BadRequestError, match="an episode is one conversation that goes on"):
        environment.step(say("yes"))


def test_two_requests_at_a_time_are_refused():
    environment = ProgramEnvironment(two_at_a_time)
    environment.reset()
    assert environment.step(say("yes"))[1] == 1.0


def test_an_error_of_the_program_is_that_of_the_step():
    with pytest.raises(RuntimeError, match="the program is broken"):
        ProgramEnvironment(raising).reset()


def test_a_program_that_asks_nothing_is_refused():
    with pytest.raises(ValueError, match=r"returned 1\.0 before it asked the policy anything"):
        ProgramEnvironment(lambda row, base_url, api_key: 1).reset()


def test_requests_of_nobody_are_refused():
    url = shared_endpoint().base_url
    answer = httpx.post(f"{url}/chat/completions", json={}, headers={"Authorization": "Bearer x"})
    assert answer.status_code == 401
    assert "the key is that of no episode" in answer.json()["error"]["message"]
    assert httpx.get(f"{url}/models").json()["data"][0]["id"] == "policy"
    assert httpx.get(f"{url}/other").status_code == 404
