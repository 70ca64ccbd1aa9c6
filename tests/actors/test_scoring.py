"""The scoring actor against a plain forward pass of the same models."""

import json
import multiprocessing
import threading
import time
from contextlib import suppress
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM, Qwen3Config, Qwen3ForCausalLM

from actors.config import ScoringConfig
from actors.reward_config import HTTPReward, RewardsConfig
from actors.scoring import ScoringActor
from actors.text_rewards import HTTPTextReward
from common.errors import UserError
from learners.data.tokenizer import train_tokenizer
from learners.models import build_policy, load_policy, load_scalar, scalar_from_policy
from tests.actors.reward_functions import results_of
from tests.learners import fixtures


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("scoring")
    fixtures.make_files(path)
    return path


def make_actor(folder, reward_model="reward", batch_tokens=128, uses_reference=True, **rewards):
    config = ScoringConfig(dtype="float32", batch_tokens=batch_tokens)
    reward_path = str(folder / reward_model) if reward_model else None
    sources = RewardsConfig(**rewards)
    return ScoringActor(str(folder / "policy"), reward_path, config, sources, fixtures.MODEL, uses_reference)


def model_scores(actor, samples, temperature=1.0):
    """(scores_B of the first source, ref_logprobs_N)"""
    scores, ref_logprobs_N = actor.score(samples, temperature, {})
    return scores.raw_CB[0], ref_logprobs_N


def test_offloaded_models_refuse_to_score_and_come_back_the_same(folder):
    samples, actor = fixtures.make_batch(size=3).samples, make_actor(folder)
    scores_B, ref_logprobs_N = model_scores(actor, samples)
    actor.offload()
    actor.offload()
    with pytest.raises(RuntimeError, match="the scoring models are offloaded; reload them first"):
        actor.score(samples, 1.0, {})
    actor.reload()
    again_B, again_N = model_scores(actor, samples)
    assert np.array_equal(scores_B, again_B)
    assert np.array_equal(ref_logprobs_N, again_N)


def test_scores_and_reference_logprobs_equal_a_plain_forward(folder):
    samples = fixtures.make_batch(size=9).samples
    scores_B, ref_logprobs_N = model_scores(make_actor(folder), samples, temperature=0.7)
    policy, reward_model = load_policy(folder / "policy"), load_scalar(folder / "reward")
    for b in range(samples.size):
        tokens = torch.tensor(samples.sequence(b).astype(np.int64))[None]
        start = int(samples.prompt_lengths_B[b])
        with torch.no_grad():
            logprobs = (policy(tokens).logits[0, start - 1 : -1] / 0.7).log_softmax(-1)
            hidden = reward_model.base_model(tokens).last_hidden_state[0, -1]
            expected_score = float(reward_model.score(hidden))
        expected = logprobs.gather(1, tokens[0, start:, None]).squeeze(1).numpy()
        response = slice(samples.offsets[b] + start, samples.offsets[b + 1])
        assert np.abs(ref_logprobs_N[response] - expected).max() < 1e-5
        assert not ref_logprobs_N[samples.offsets[b] : samples.offsets[b] + start].any()
        assert abs(scores_B[b] - expected_score) < 1e-5


def test_scores_do_not_depend_on_micro_batches(folder):
    samples = fixtures.make_batch(size=9).samples
    many_batches = model_scores(make_actor(folder, batch_tokens=64), samples)
    one_batch = model_scores(make_actor(folder, batch_tokens=4096), samples)
    for a, b in zip(many_batches, one_batch, strict=True):
        assert np.abs(a - b).max() < 1e-5


def test_a_sequence_over_the_budget_names_the_key_of_scoring(folder):
    samples = fixtures.make_batch(size=9).samples
    with pytest.raises(UserError, match=r"tokens does not fit scoring.batch_tokens=16"):
        model_scores(make_actor(folder, batch_tokens=16), samples)


def test_packed_rows_give_the_values_of_padded_ones(folder):
    samples = fixtures.make_batch(size=40).samples
    actor = make_actor(folder, batch_tokens=512)
    assert actor.span
    packed = model_scores(actor, samples, temperature=0.7)
    actor.span = None
    for a, b in zip(packed, model_scores(actor, samples, temperature=0.7), strict=True):
        assert np.abs(a - b).max() < 1e-6 * np.abs(b).max()


def test_sequences_have_rows_of_their_own_where_the_architecture_mixes_them(folder):
    opt = OPTConfig(
        vocab_size=320,
        hidden_size=64,
        ffn_dim=96,
        num_hidden_layers=1,
        num_attention_heads=2,
        word_embed_proj_dim=64,
        max_position_embeddings=64,
    )
    OPTForCausalLM(opt).save_pretrained(folder / "opt")
    train_tokenizer(fixtures.TEXTS, 320).save_pretrained(folder / "opt")
    config = ScoringConfig(batch_tokens=512, dtype="float32")
    actor = ScoringActor(str(folder / "opt"), None, config, RewardsConfig(), fixtures.MODEL)
    samples = fixtures.make_batch(size=9).samples
    together = model_scores(actor, samples)[1]
    alone = [model_scores(actor, samples.select([b]))[1] for b in range(samples.size)]
    assert np.abs(together - np.concatenate(alone)).max() < 1e-5


def test_without_the_reference_the_scores_are_the_same(folder):
    samples = fixtures.make_batch(size=9).samples
    actor = make_actor(folder, uses_reference=False)
    assert actor.reference is None
    scores_B, ref_logprobs_N = model_scores(actor, samples)
    assert ref_logprobs_N is None
    assert np.array_equal(scores_B, model_scores(make_actor(folder), samples)[0])
    kept, kept_logprobs_N = actor.select(samples, None, [0, 2])
    assert (kept.size, kept_logprobs_N) == (2, None)


def test_a_reference_whose_head_is_read_wrongly_is_refused(folder, monkeypatch):
    def matrix_alone(model, hidden_ND):
        return 2 * model.get_output_embeddings()(hidden_ND)

    monkeypatch.setattr("learners.models.own_logits", matrix_alone)
    with pytest.raises(UserError, match="Qwen3ForCausalLM: log-probabilities computed here are not those"):
        make_actor(folder)


def test_reward_bias_is_subtracted(folder):
    samples = fixtures.make_batch(size=9).samples
    actor = make_actor(folder)
    plain_B = model_scores(actor, samples)[0]
    actor.reward_models[0].module.model.config.reward_bias = 2.5
    assert np.allclose(model_scores(actor, samples)[0], plain_B - 2.5, atol=1e-5)


def test_without_a_reward_model_scores_are_zero(folder):
    samples = fixtures.make_batch().samples
    assert not model_scores(make_actor(folder, reward_model=None), samples)[0].any()


def test_reward_model_of_another_vocabulary_is_refused(folder):
    other = build_policy(fixtures.MODEL, train_tokenizer(fixtures.TEXTS, 300), seed=1)
    other.save_pretrained(folder / "other")
    scalar_from_policy(folder / "other", seed=0).save_pretrained(folder / "other-reward")
    with pytest.raises(UserError, match="both must come from one tokenizer"):
        make_actor(folder, reward_model="other-reward")


MODULE = "tests.actors.reward_functions"


def test_function_scores_stand_beside_those_of_the_model(folder):
    samples = fixtures.make_batch(size=4).samples
    rows = {}
    for i, score in enumerate([1.5, float("nan"), "2", -2]):
        rows[i] = {"prompt": f"p{i}", "score": score, "failures": 0}
    sources = [{"kind": "model"}, {"kind": "function", "path": f"{MODULE}:unreliable"}]
    scores, _ = make_actor(folder, sources=sources).score(samples, 1.0, rows)
    assert np.allclose(scores.raw_CB[0], model_scores(make_actor(folder), samples)[0])
    assert scores.raw_CB[1].tolist() == pytest.approx([1.5, np.nan, np.nan, -2], nan_ok=True)
    failures = [(f["source"], f["prompt"], f["reason"].split(":")[0]) for f in scores.failures]
    assert failures == [
        ("unreliable", "p1", "ValueError"),
        ("unreliable", "p2", "TypeError"),
    ]
    assert all(failure["response"] for failure in scores.failures)


def test_a_source_that_does_not_apply_is_no_failure_unless_none_applies(folder):
    samples = fixtures.make_batch(size=3).samples
    bonuses, skipped = [0.5, 0.5, None], [False, True, True]
    rows = {}
    for i in range(3):
        rows[i] = {"prompt": f"p{i}", "skip_length": skipped[i], "bonus": bonuses[i]}
    sources = [
        {"kind": "function", "path": f"{MODULE}:length_or_none"},
        {"kind": "function", "path": f"{MODULE}:bonus"},
    ]
    scores, _ = make_actor(folder, sources=sources).score(samples, 1.0, rows)
    assert scores.applies_CB.tolist() == [[True, False, False], [True, True, False]]
    assert scores.raw_CB[:, 1].tolist() == [0.0, 0.5]
    assert np.isfinite(scores.raw_CB[:, :2]).all()
    assert np.isnan(scores.raw_CB[:, 2]).all()
    assert [(f["prompt"], f["source"]) for f in scores.failures] == [("p2", "length_or_none, bonus")]
    assert "no source of reward applies" in scores.failures[0]["reason"]


class RewardEndpoint(BaseHTTPRequestHandler):
    """Answers with the length of the response; fails once, stalls or answers no JSON where the row
    says so."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        row, is_first = body["row"], body not in self.server.requests
        self.server.requests.append(body)
        if row.get("stall"):  # longer than the client waits
            time.sleep(0.6)
        else:
            self.server.active.append(1)
            self.server.max_active = max(self.server.max_active, len(self.server.active))
            time.sleep(0.02)
            self.server.active.pop()
        answer = json.dumps({"reward": len(body["response"])}).encode()
        if row.get("no_json"):
            answer = b"?"
        # The client closes the connection when its timeout is over.
        with suppress(BrokenPipeError, ConnectionResetError):
            self.send_response(500 if row.get("fails_once") and is_first else 200)
            self.end_headers()
            self.wfile.write(answer)

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint():
    server = ThreadingHTTPServer(("127.0.0.1", 0), RewardEndpoint)
    server.requests, server.active, server.max_active = [], [], 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def test_endpoint_is_retried_within_timeout_and_concurrency(endpoint):
    url = f"http://127.0.0.1:{endpoint.server_port}"
    reward = HTTPTextReward(HTTPReward(url=url, timeout_s=0.3, retries=1, concurrency=3))
    # Rows differ, since the endpoint recognizes a repeated request by its body.
    rows = [{}, {"fails_once": True}, {"stall": True}, {"no_json": True}]
    rows += [{"n": n} for n in range(20)]
    results = results_of(reward, rows)
    assert [result.score for result in results[:2]] == [4, 4]
    kinds = [result.failure.split(":")[0] for result in results[2:4]]
    assert kinds == ["ReadTimeout", "JSONDecodeError"]
    assert all(result.score == 4 for result in results[4:])
    assert 1 < endpoint.max_active <= 3


def test_an_endpoint_gets_valid_json_of_any_row(endpoint):
    reward = HTTPTextReward(HTTPReward(url=f"http://127.0.0.1:{endpoint.server_port}"))
    row = {"price": float("nan"), "best": [float("inf")], "when": date(2024, 1, 2)}
    assert results_of(reward, [row])[0].score == 4
    expected = {"price": None, "best": [None], "when": "2024-01-02"}
    assert endpoint.requests[0]["row"] == expected


@pytest.fixture(scope="module")
def even_folder(tmp_path_factory):
    """Models whose heads and vocabulary two devices share evenly."""
    path = tmp_path_factory.mktemp("even")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(3)
    Qwen3ForCausalLM(Qwen3Config(vocab_size=320, pad_token_id=0, **sizes, **heads)).save_pretrained(
        path / "policy"
    )
    train_tokenizer(fixtures.TEXTS, 320).save_pretrained(path / "policy")
    scalar_from_policy(path / "policy", seed=2).save_pretrained(path / "reward")
    return path


def cut_over_two(folder, queue):
    """In a process of its own: scores of the same samples by whole and by cut models, twice, the
    parameters that the leader holds, and what happens when the worker dies."""
    samples = fixtures.make_batch(size=9, responses=3).samples
    results = []
    for size in (1, 2):
        config = ScoringConfig(dtype="float32", batch_tokens=128, tensor_parallel=size, threads=1)
        actor = ScoringActor(
            str(folder / "policy"), str(folder / "reward"), config, RewardsConfig(), fixtures.MODEL
        )
        scores = [model_scores(actor, samples, temperature) for temperature in (0.7, 1.0)]
        results.append((scores, actor.span, actor.shares_prompts))
    module = actor.reference.module
    held = sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in module.parameters())
    total = sum(p.numel() for p in module.parameters())
    worker = actor.reference.workers[0]
    worker.kill()
    worker.join()
    try:
        model_scores(actor, samples)
        ended = None
    except SystemExit as error:
        ended = str(error)
    queue.put((results, held, total, ended))


def test_models_cut_over_two_devices_score_as_whole_ones(even_folder):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=cut_over_two, args=(even_folder, queue))
    process.start()
    (whole, cut), held, total, ended = queue.get(timeout=300)
    process.join(60)
    assert whole[1:] == cut[1:] == (384.0, True)
    for (scores, ref_logprobs_N), (cut_scores, cut_ref_logprobs_N) in zip(whole[0], cut[0], strict=True):
        assert np.abs(scores - cut_scores).max() < 1e-5
        assert np.abs(ref_logprobs_N - cut_ref_logprobs_N).max() < 1e-5
        assert np.abs(ref_logprobs_N).max() > 1
    assert held < 0.65 * total  # the embedding is whole on every device
    # The actor ends, and so the fleet sees a death and starts another.
    assert "a worker of a cut scoring model failed" in ended
