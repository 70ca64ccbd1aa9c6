"""A judge behind our own endpoint."""

import math

from actors.judge_rewards import JudgeTextReward
from actors.reward_config import JudgeReward
from tests.actors.reward_functions import results_of

ROWS = [{"prompt": f"What is the capital of {country}?"} for country in ("France", "Peru", "Chad")]


def judge(endpoint, tmp_path, **keys) -> JudgeTextReward:
    template = tmp_path / "template.txt"
    # Short, as the served model's context is.
    template.write_text("{rubric} {prompt} {response} Score:")
    settings = {"retries": 0, "concurrency": 2, "rubric": "Short?", "api_key_env": "ENDPOINT_KEY"}
    settings |= {"base_url": f"{endpoint.url}/v1", "model": "hero", "template": str(template)}
    return JudgeTextReward(JudgeReward(**settings, **keys))


def test_scores_come_from_the_served_model_once(endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("ENDPOINT_KEY", endpoint.key)
    # A model of random weights writes a score only if it is held to one.
    held = {"structured_outputs": {"regex": "Score: [2-9]"}}
    keys = {"cache": str(tmp_path / "answers.db"), "max_tokens": 12, "request": held}
    results = results_of(judge(endpoint, tmp_path, **keys), ROWS)
    assert all(2 <= result.score <= 9 for result in results), results
    before = endpoint.metric("vllm:request_success_total")
    assert results_of(judge(endpoint, tmp_path, **keys), ROWS) == results
    assert endpoint.metric("vllm:request_success_total") == before


def test_an_answer_without_a_score_and_a_refused_key_are_failures(endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("ENDPOINT_KEY", endpoint.key)
    results = results_of(judge(endpoint, tmp_path, max_tokens=8), ROWS)
    assert all(math.isnan(result.score) for result in results)
    assert all(result.failure.startswith("no match of ") for result in results)
    (long,) = results_of(judge(endpoint, tmp_path, max_tokens=8), [{"prompt": "word " * 600}])
    assert long.failure.startswith("HTTPStatusError: 400 Bad Request: ")
    assert "context length" in long.failure
    monkeypatch.setenv("ENDPOINT_KEY", "wrong")
    assert "401" in results_of(judge(endpoint, tmp_path, max_tokens=8), ROWS[:1])[0].failure
