"""A language model as a judge, against an endpoint of this process that answers as the row says; the real
endpoint is in tests/serve/test_judge_reward.py. HTTP rewards in batches."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from actors.judge_rewards import JudgeTextReward
from actors.reward_config import HTTPReward, JudgeReward
from actors.text_rewards import HTTPTextReward
from common.errors import UserError
from tests.actors.reward_functions import results_of


class Endpoint(BaseHTTPRequestHandler):
    """chat/completions that repeats what the prompt asks for after "say:", and rewards of batches."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests.append((self.path, dict(self.headers), body))
        status, answer = 200, {}
        if "messages" in body:
            said = body["messages"][0]["content"].partition("say:")[2].partition("\n")[0]
            if said == "fail once" and len(self.server.requests) == 1:
                status = 503
            answer = {"choices": [{"message": {"role": "assistant", "content": said}}]}
        elif "items" in body:
            answer = {"rewards": [item["row"]["reward"] for item in body["items"]]}
            if any(item["row"].get("drop") for item in body["items"]):
                answer["rewards"].pop()
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    server.requests = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def judge(endpoint, **keys):
    base_url = f"http://127.0.0.1:{endpoint.server_port}/v1"
    return JudgeTextReward(JudgeReward(base_url=base_url, model="judge-1", retries=1, **keys))


def test_the_score_is_read_from_the_answer_and_failures_have_a_reason(endpoint):
    says = ["Good. Score: 7", "Score: 2 ... no. Score: 3.5", "I like it", "Score: 11"]
    results = results_of(judge(endpoint), [{"prompt": f"say:{text}"} for text in says])
    assert [result.score for result in results[:2]] == [7.0, 3.5]
    assert results[2].score != results[2].score  # nan: quarantined
    assert "no match of" in results[2].failure
    assert "'I like it'" in results[2].failure
    assert results[3].failure == "the judge's score 11 is not from 1 to 10"
    assert len(endpoint.requests) == 4  # an answer without a score is not asked for again


def test_the_request_has_template_key_and_settings(endpoint, tmp_path, monkeypatch):
    template = tmp_path / "template.txt"
    template.write_text("{rubric} | {prompt} | {response} | {row.answer} | {other} say:Score: 5\n")
    monkeypatch.setenv("JUDGE_KEY", "secret")
    settings = {"template": str(template), "rubric": "Be {response}.", "request": {"seed": 3}}
    reward = judge(endpoint, api_key_env="JUDGE_KEY", **settings)
    talk = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert results_of(reward, [{"prompt": talk, "answer": 42}])[0].score == 5
    path, headers, body = endpoint.requests[0]
    assert path == "/v1/chat/completions"
    assert headers["authorization"] == "Bearer secret"
    assert body["messages"][0]["content"].startswith(
        "Be {response}. | system: s\nuser: u | text | 42 | {other}"
    )
    assert {"model": "judge-1", "temperature": 0, "seed": 3, "max_tokens": 256}.items() <= body.items()
    missing = results_of(reward, [{"prompt": "p"}])[0]
    assert missing.failure == "the row has no key 'answer', which the template names"


def test_an_answer_is_asked_for_once(endpoint, tmp_path):
    cache = str(tmp_path / "deep" / "answers.db")
    rows = [{"prompt": f"say:Score: {n}"} for n in (1, 2)]
    first = results_of(judge(endpoint, cache=cache), rows)
    again = results_of(judge(endpoint, cache=cache), rows)
    assert first == again
    assert len(endpoint.requests) == 2
    # Another request is another entry; another pattern reads the same answers.
    assert results_of(judge(endpoint, cache=cache, pattern="(Score)"), rows)[0].failure.endswith(
        "is no number"
    )
    assert len(endpoint.requests) == 2
    results_of(judge(endpoint, cache=cache, request={"temperature": 1}), rows)
    assert len(endpoint.requests) == 4


def test_a_request_that_fails_is_tried_again(endpoint):
    reward = judge(endpoint, pattern="(.*once)", lowest=-1e9)
    (result,) = results_of(reward, [{"prompt": "say:fail once"}])
    assert len(endpoint.requests) == 2
    assert result.failure == "'fail once' in the judge's answer is no number"
    endpoint.shutdown()
    endpoint.server_close()
    assert results_of(judge(endpoint), [{"prompt": "p"}])[0].failure.startswith("ConnectError")


def test_settings_that_cannot_work_are_refused(tmp_path):
    base = {"base_url": "http://127.0.0.1:1", "model": "m"}
    with pytest.raises(ValueError, match="its first group is the score"):
        JudgeReward(**base, pattern="Score")
    with pytest.raises(ValueError, match="messages cannot be set here"):
        JudgeReward(**base, request={"messages": []})
    with pytest.raises(ValueError, match="lowest 10 is not below highest 10"):
        JudgeReward(**base, lowest=10)
    with pytest.raises(UserError, match="api_key_env=NO_SUCH_KEY: no such environment variable"):
        JudgeTextReward(JudgeReward(**base, api_key_env="NO_SUCH_KEY"))
    (tmp_path / "t.txt").write_text("no field")
    with pytest.raises(UserError, match=r"it does not name \{response\}"):
        JudgeTextReward(JudgeReward(**base, template=str(tmp_path / "t.txt")))


def test_an_http_reward_takes_batches(endpoint):
    url = f"http://127.0.0.1:{endpoint.server_port}"
    rows = [{"reward": n} for n in range(5)]
    rows[1]["reward"] = None
    results = results_of(HTTPTextReward(HTTPReward(url=url, batch_size=2, retries=0)), rows)
    assert [result.score for result in results] == [0, None, 2, 3, 4]
    assert sorted(len(body["items"]) for _, _, body in endpoint.requests) == [1, 2, 2]
    rows[2]["drop"] = True
    results = results_of(HTTPTextReward(HTTPReward(url=url, batch_size=2, retries=0)), rows)
    assert [result.failure for result in results[2:4]] == ["ValueError: 1 rewards for 2 items"] * 2
    assert [result.score for result in (*results[:2], results[4])] == [0, None, 4]
