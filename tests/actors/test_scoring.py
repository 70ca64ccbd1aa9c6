"""The scoring actor against a plain forward pass of the same models."""

import json
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from actors.config import FunctionReward, HTTPReward, RewardsConfig, ScoringConfig
from actors.scoring import ScoringActor
from actors.text_rewards import TextReward
from common.errors import UserError
from learners.data.tokenizer import train_tokenizer
from learners.models import build_policy, load_policy, load_scalar, scalar_from_policy
from tests.learners import fixtures


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("scoring")
    fixtures.make_files(path)
    return path


def actor(folder, reward="reward", tokens=128, **rewards):
    config = ScoringConfig(batch_tokens=tokens)
    path = str(folder / reward) if reward else None
    return ScoringActor(str(folder / "policy"), path, config, RewardsConfig(**rewards), fixtures.MODEL)


def scored(actor, samples, temperature=1.0, rows=None):
    scores, ref_N = actor.score(samples, temperature, rows or {})
    return scores.raw_KB[0], ref_N


def test_scores_are_the_scalar_at_the_last_token_and_logprobs_those_of_the_reference(folder):
    samples, _ = fixtures.make_batch(size=9)
    scores_B, ref_N = scored(actor(folder), samples, temperature=0.7)
    policy, reward = load_policy(folder / "policy"), load_scalar(folder / "reward")
    for b in range(samples.size):
        tokens = torch.tensor(samples.sequence(b).astype(np.int64))[None]
        start = int(samples.prompt_lengths_B[b])
        with torch.no_grad():
            logprobs = (policy(tokens).logits[0, start - 1 : -1] / 0.7).log_softmax(-1)
            hidden = reward.base_model(tokens).last_hidden_state[0, -1]
            expected_score = float(reward.score(hidden))
        expected = logprobs.gather(1, tokens[0, start:, None]).squeeze(1).numpy()
        span = slice(samples.offsets[b] + start, samples.offsets[b + 1])
        assert np.abs(ref_N[span] - expected).max() < 1e-5
        assert not ref_N[samples.offsets[b] : samples.offsets[b] + start].any()
        assert abs(scores_B[b] - expected_score) < 1e-5


def test_results_do_not_depend_on_micro_batches_and_the_bias_is_taken_off(folder):
    samples, _ = fixtures.make_batch(size=9)
    many, one = actor(folder, tokens=64), actor(folder, tokens=4096)
    for a, b in zip(scored(many, samples), scored(one, samples), strict=True):
        assert np.abs(a - b).max() < 1e-5
    plain = scored(one, samples)[0]
    one.reward.model.config.reward_bias = 2.5
    assert np.allclose(scored(one, samples)[0], plain - 2.5, atol=1e-5)


def test_without_a_reward_model_scores_are_zero(folder):
    samples, _ = fixtures.make_batch()
    assert not scored(actor(folder, reward=None), samples)[0].any()


def test_another_vocabulary_is_refused(folder):
    other = build_policy(fixtures.MODEL, train_tokenizer(fixtures.TEXTS, 300), seed=1)
    other.save_pretrained(folder / "other")
    scalar_from_policy(folder / "other", seed=0).save_pretrained(folder / "other-reward")
    with pytest.raises(UserError, match="both must come from one tokenizer"):
        actor(folder, reward="other-reward")


def moody(row, response, ended):
    """Fails as often as the row says, then rewards."""
    row["calls"] = row.get("calls", 0) + 1
    if row["calls"] <= row["failures"]:
        raise RuntimeError("not today")
    return row["worth"]


def test_functions_get_row_and_text_and_sources_stand_side_by_side(folder):
    samples, _ = fixtures.make_batch(size=4)
    worths = [1.5, float("nan"), None, -2]
    rows = {i: {"prompt": f"p{i}", "worth": w, "failures": 0} for i, w in enumerate(worths)}
    sources = [{"kind": "model"}, {"kind": "function", "path": "tests.actors.test_scoring:moody"}]
    scores, _ = actor(folder, sources=sources).score(samples, 1.0, rows)
    assert np.allclose(scores.raw_KB[0], scored(actor(folder), samples)[0])
    assert scores.raw_KB[1].tolist() == pytest.approx([1.5, np.nan, np.nan, -2], nan_ok=True)
    told = [(f["source"], f["prompt"], f["reason"][:10]) for f in scores.faults]
    assert told == [("moody", "p1", "not finite"), ("moody", "p2", "TypeError:")]
    assert all(f["response"] for f in scores.faults)


def test_a_reward_that_fails_is_tried_again_as_often_as_configured():
    rows = [{"prompt": f"again {n}", "worth": 1, "failures": n} for n in range(4)]
    reward = TextReward(FunctionReward(path="tests.actors.test_scoring:moody", retries=2))
    found = [f.result() for f in reward.start([(row, "text", True) for row in rows])]
    assert [score for score, _ in found[:3]] == [1, 1, 1]
    assert found[3] == (pytest.approx(np.nan, nan_ok=True), "RuntimeError: not today")
    assert [row["calls"] for row in rows] == [1, 2, 3, 3]


@pytest.fixture
def endpoint():
    """A reward endpoint: the length of the response, but it fails once, stalls or talks nonsense where the row says so."""
    seen, busy = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            row, first = body["row"], body not in seen
            seen.append(body)
            if row.get("stall"):  # still here when the client has gone away
                time.sleep(0.6)
            else:
                busy.append(1)
                self.server.most = max(self.server.most, len(busy))
                time.sleep(0.02)
                busy.pop()
            said = b"?" if row.get("nonsense") else json.dumps({"reward": len(body["response"])}).encode()
            with suppress(BrokenPipeError, ConnectionResetError):  # the client has gone
                self.send_response(500 if row.get("fails_once") and first else 200)
                self.end_headers()
                self.wfile.write(said)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.most = 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def test_an_endpoint_is_asked_again_within_timeout_and_concurrency(endpoint):
    config = HTTPReward(
        url=f"http://127.0.0.1:{endpoint.server_port}", timeout_s=0.3, retries=1, concurrency=3
    )
    rows = [{}, {"fails_once": True}, {"stall": True}, {"nonsense": True}, *({"n": n} for n in range(20))]
    found = [f.result() for f in TextReward(config).start([(row, "text", True) for row in rows])]
    assert [score for score, _ in found[:2]] == [4, 4]
    assert [reason.split(":")[0] for _, reason in found[2:4]] == ["ReadTimeout", "JSONDecodeError"]
    assert all(score == 4 for score, _ in found[4:])
    assert 1 < endpoint.most <= 3
