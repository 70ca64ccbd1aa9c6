"""All stages on a very small config, with every real component: interrupted and resumed, served and
queried."""

import itertools
import json
import re
import subprocess
from pathlib import Path

import pytest
from openai import OpenAI

from cluster.stage_registry import DEFAULT_STAGES as STAGES
from common.run_paths import RunPaths
from learners.rl.advantages import adapted_kl_coef
from serve.config import ServeConfig
from tests.runs import HERO, ITERATIONS, OVERRIDES, jsonl, metrics, start, wait_until_finished

OUR_LINES = (
    *("dtype: ", "alarm ", "error: stopped;", "Held-out prompts", "PPO preferred to SFT", "reward model: "),
    *("time: ", "memory: ", "report: ", "talk to it: "),
)
"""Starts of what a run prints, but for progress (a stage and its count) and the rows of the table."""


@pytest.mark.timeout(900)
def test_every_stage_is_done_and_every_step_logged_once(run):
    for stage in STAGES:
        assert RunPaths(run).stage(stage).done.exists()
    for stage, steps in (("pretrain", 30), ("ppo", ITERATIONS)):
        assert sorted({row["step"] for row in metrics(run, stage)}) == list(range(1, steps + 1))
    assert [row["step"] for row in metrics(run, "ppo")] == list(range(1, ITERATIONS + 1))
    assert not list(run.glob("*/checkpoints"))


def test_terminal_shows_our_lines_only(run):
    """Nothing of Ray, DeepSpeed, vLLM, W&B or torch, at the start, the end or an interruption."""
    progress = re.compile(rf"({'|'.join(STAGES)}) +\d+/\d+ ")
    lines = Path(f"{run}.log").read_text().splitlines()
    assert lines[0].startswith("dtype: learners ")
    for line in lines:
        if " is corrupt (" in line:
            continue  # a checkpoint that was being written when the run was stopped
        assert not line.strip() or line.startswith((" ", *OUR_LINES)) or progress.match(line), line
    assert (RunPaths(run).logs / "ray.log").exists()


def test_first_ratio_and_kl_are_exact_and_loss_falls(run):
    ppo = metrics(run, "ppo")
    assert ppo[0]["val/first_ratio_error"] < 1e-5
    assert abs(ppo[0]["objective/kl"]) < 1e-4
    assert all(row["sync/mean_error"] < 1e-5 and row["mismatch/mean"] < 1e-5 for row in ppo)
    losses = [row["loss/train"] for row in metrics(run, "pretrain") if "loss/train" in row]
    assert losses[-1] < losses[0] - 1


def test_kl_coefficient_adapts(run):
    ppo = metrics(run, "ppo")
    assert ppo[0]["kl_coef"] == 0.35
    for before, after in itertools.pairwise(ppo):
        kl_coef, kl = before["kl_coef"], before["objective/kl"]
        expected = adapted_kl_coef(kl_coef, kl, target=0.5, horizon=64, samples=16)
        assert after["kl_coef"] == pytest.approx(expected)


def test_alarms_best_of_n_and_pretrain_loss_are_recorded(run):
    paths = RunPaths(run)
    (alarm,) = jsonl(paths.alarms)
    assert alarm["alarm"] == "ended"  # so small a policy does not learn to stop
    assert "of the responses end by themselves at iteration 1" in alarm["evidence"]
    baseline = json.loads(paths.best_of_n.read_text())
    assert [entry["n"] for entry in baseline] == [1, 2, 4]
    assert baseline[0]["reward"] < baseline[1]["reward"] < baseline[2]["reward"]
    assert metrics(run, "ppo")[-1]["eval/pretrain_loss"] > 0


def test_rankings_have_the_format_of_human_rankings(run):
    ranking = jsonl(RunPaths(run).rankings)[0]
    assert {"prompt", "responses", "ranks", "labeler", "time", "policy", "decoding"} <= ranking.keys()
    assert len(ranking["responses"]) == len(ranking["ranks"]) == 4
    assert [d["temperature"] for d in ranking["decoding"]] == [1.0] * 4
    assert ranking["policy"] == [{"model": "tiny", "version": "sft-0"}] * 4


def test_run_leaves_evaluation_report_timings_and_wandb_files(run):
    paths = RunPaths(run)
    results = json.loads(paths.evaluation.read_text())
    assert set(results["stages"]) == {"pretrain", "sft", "ppo"}
    sampled = results["stages"]["sft"]["sampled"]
    assert sampled["kl"] == pytest.approx(0, abs=1e-4)
    assert sampled["pass@2"] >= sampled["pass@1"] == sampled["mean@2"]
    assert 0 <= results["win_rate"]["low"] <= results["win_rate"]["rate"] <= results["win_rate"]["high"] <= 1
    assert "The same prompts answered by each stage" in paths.report.read_text()
    timings = json.loads(paths.timings.read_text())
    assert timings["peak_memory_gib"] > 1
    assert set(STAGES) <= set(timings["stages"])
    assert list((run / "wandb").glob("offline-run-*/*.wandb"))


def test_training_promotes_every_promote_every_iterations(run):
    promotions = [(row["to"], row["why"]) for row in jsonl(RunPaths(run).promotions)]
    assert ("ppo-1", "trained while nothing served the run") in promotions
    # Once only: the files of a promoted version are not stored again under its name.
    for name in ("ppo-2", "ppo-4", "ppo-6"):
        assert [why for to, why in promotions if to == name] == ["every 2 iterations"]
    assert {row["step"] for row in metrics(run, "ppo") if "serve/promoted" in row} == {2, 4, 6}


def test_finished_run_does_nothing_when_run_again(run):
    done = RunPaths(run).stage("ppo").done
    before = done.stat().st_mtime_ns
    wait_until_finished(start(run, *OVERRIDES), run)
    assert done.stat().st_mtime_ns == before


def test_policy_answers_over_http_and_in_hero_chat(run):
    from serve.launch import running

    with running(run, ServeConfig(port=8017, kv_cache_gib=0.1)) as (url, served):
        assert served.name == f"ppo-{ITERATIONS}"
        client = OpenAI(base_url=url, api_key="none")
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        raw = client.chat.completions.with_raw_response.create(model="hero", messages=messages, max_tokens=8)
        assert raw.headers["x-weight-version"] == f"ppo-{ITERATIONS}"
        assert raw.parse().usage.completion_tokens <= 8
        greedy = {"model": "hero", "messages": messages, "max_tokens": 8, "temperature": 0}
        complete = client.chat.completions.create(**greedy).choices[0].message.content
        chunks = client.chat.completions.create(**greedy, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == complete
        chat = [*HERO, "chat", url, "--temperature", "0"]
        question = messages[0]["content"]
        session = subprocess.run(
            chat, input=f"{question}\n/quit\n", capture_output=True, text=True, timeout=60
        )
        assert session.returncode == 0
        # The policy may end at once, but the terminal shows what the endpoint answers.
        answer = client.chat.completions.create(model="hero", messages=messages, temperature=0)
        assert session.stdout.split() == answer.choices[0].message.content.split()
