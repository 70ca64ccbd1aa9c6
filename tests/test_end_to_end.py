"""The whole loop on a very small config, with every real component: stopped in the middle, resumed, served, asked."""

import itertools
import json
import subprocess

import pytest
from openai import OpenAI

from cluster.config import STAGES
from learners.rl.advantages import adapted_kl_coef
from serve.config import ServeConfig
from tests.runs import HERO, ITERATIONS, OVERRIDES, finished, rows, start


@pytest.mark.timeout(900)
def test_every_stage_is_done_and_every_step_is_there_once(run):
    for stage in STAGES:
        assert (run / stage / "done.json").exists()
    for stage, steps in (("pretrain", 30), ("ppo", ITERATIONS)):
        assert sorted({r["step"] for r in rows(run / "metrics.jsonl", stage)}) == list(range(1, steps + 1))
    assert [r["step"] for r in rows(run / "metrics.jsonl", "ppo")] == list(range(1, ITERATIONS + 1))
    assert not list(run.glob("*/checkpoints"))


def test_learning_follows_the_rules(run):
    ppo = rows(run / "metrics.jsonl", "ppo")
    assert ppo[0]["val/first_ratio_error"] < 1e-5
    assert abs(ppo[0]["objective/kl"]) < 1e-4
    assert all(r["sync/mean_error"] < 1e-5 and r["mismatch/mean"] < 1e-5 for r in ppo)
    pretrain = [r["loss/train"] for r in rows(run / "metrics.jsonl", "pretrain") if "loss/train" in r]
    assert pretrain[-1] < pretrain[0] - 1


def test_the_kl_coefficient_adapts(run):
    ppo = rows(run / "metrics.jsonl", "ppo")
    assert ppo[0]["kl_coef"] == 0.35
    for before, after in itertools.pairwise(ppo):
        expected = adapted_kl_coef(
            before["kl_coef"], before["objective/kl"], target=0.5, horizon=64, samples=16
        )
        assert after["kl_coef"] == pytest.approx(expected)


def test_alarms_best_of_n_and_the_pretraining_loss_are_kept(run):
    (alarm,) = [json.loads(line) for line in (run / "ppo" / "alarms.jsonl").read_text().splitlines()]
    assert alarm["alarm"] == "ended"  # so small a policy does not learn to stop
    assert "of the responses end by themselves at iteration 1" in alarm["evidence"]
    baseline = json.loads((run / "ppo" / "best_of_n.json").read_text())
    assert [b["n"] for b in baseline] == [1, 2, 4]
    assert baseline[0]["reward"] < baseline[1]["reward"] < baseline[2]["reward"]
    assert rows(run / "metrics.jsonl", "ppo")[-1]["eval/pretrain_loss"] > 0


def test_rankings_are_in_the_format_that_real_ones_will_use(run):
    ranking = json.loads((run / "collect" / "rankings.jsonl").read_text().splitlines()[0])
    assert {"prompt", "responses", "ranks", "labeler", "time", "policy", "decoding"} <= ranking.keys()
    assert len(ranking["responses"]) == len(ranking["ranks"]) == 4
    assert ranking["decoding"]["temperature"] == 1.0


def test_a_run_leaves_evaluation_report_timings_and_wandb_files(run):
    results = json.loads((run / "evaluate" / "results.json").read_text())
    assert set(results["stages"]) == {"pretrain", "sft", "ppo"}
    sampled = results["stages"]["sft"]["sampled"]
    assert sampled["kl"] == pytest.approx(0, abs=1e-4)
    assert sampled["pass@2"] >= sampled["pass@1"] == sampled["mean@2"]
    assert 0 <= results["win_rate"]["low"] <= results["win_rate"]["rate"] <= results["win_rate"]["high"] <= 1
    assert "The same prompts answered by each stage" in (run / "report.html").read_text()
    timings = json.loads((run / "timings.json").read_text())
    assert timings["peak_memory_gib"] > 1
    assert set(STAGES) <= set(timings["stages"])
    assert list((run / "wandb").glob("offline-run-*/*.wandb"))


def test_training_promotes_as_often_as_the_config_says(run):
    moves = [json.loads(line) for line in (run / "promotions.jsonl").read_text().splitlines()]
    assert ("ppo-2", "every 2 iterations") in {(m["to"], m["why"]) for m in moves}
    assert {r["step"] for r in rows(run / "metrics.jsonl", "ppo") if "serve/promoted" in r} == {2, 4, 6}


def test_running_it_again_does_nothing(run):
    before = (run / "ppo" / "done.json").stat().st_mtime_ns
    finished(start(run, *OVERRIDES), run)
    assert (run / "ppo" / "done.json").stat().st_mtime_ns == before


def test_the_policy_answers_over_http(run):
    from serve.launch import running

    with running(run, ServeConfig(port=8017, kv_cache_gib=0.1)) as (url, served):
        assert served.version == f"ppo-{ITERATIONS}"
        client = OpenAI(base_url=url, api_key="none")
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        raw = client.chat.completions.with_raw_response.create(model="hero", messages=messages, max_tokens=8)
        assert raw.headers["x-weight-version"] == f"ppo-{ITERATIONS}"
        assert raw.parse().usage.completion_tokens <= 8
        greedy = {"model": "hero", "messages": messages, "max_tokens": 8, "temperature": 0}
        whole = client.chat.completions.create(**greedy).choices[0].message.content
        pieces = [
            c.choices[0].delta.content or "" for c in client.chat.completions.create(**greedy, stream=True)
        ]
        assert "".join(pieces) == whole
        chat = [*HERO, "chat", url, "--temperature", "0"]
        said = subprocess.run(chat, input="Hello!\n/quit\n", capture_output=True, text=True, timeout=60)
        assert said.returncode == 0
        assert said.stdout.strip()
