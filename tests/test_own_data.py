"""The user's own files, own reward and adapters, through every stage with every real component."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from cluster.config_loader import load_config
from cluster.pipeline import run_stages
from tests.runs import metrics


def short(row, response, ended):
    """Short responses are good; one prompt cannot be judged."""
    if row["number"] == 3:
        raise LookupError("nobody knows")
    return -float(len(response))


def write_files(folder: Path) -> None:
    prompts = [{"prompt": f"What is {n} plus {n}?", "number": n} for n in range(8)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    with open(folder / "demonstrations.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "response", "user"])
        writer.writerows([f"What is {n} plus 1?", str(n + 1), f"user {n % 9}"] for n in range(40))
    pairs = [
        {"prompt": f"q{n}", "chosen": "Yes.", "rejected": "word " * (1 + n % 4), "user": n % 9}
        for n in range(40)
    ]
    lines = [json.dumps(pair) for pair in pairs]
    lines[4:4] = ['{"prompt": "q"', json.dumps({**pairs[0], "prompt": "long " * 200})]
    (folder / "rankings.jsonl").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    write_files(folder)
    overrides = [
        f"run_dir={folder / 'run'}",
        "stages=[pretrain,sft,reward,ppo,evaluate]",
        f"data.root={folder}",
        "data.prompts=prompts.jsonl",
        "data.heldout=prompts.jsonl",
        "data.demonstrations=demonstrations.csv",
        "data.rankings=rankings.jsonl",
        "data.split_key=user",
        "data.max_invalid_rows=1",
        "data.overlong=drop",
        "reward_model.folds=2",
        "reward_model.batch_size=4",
        # The trained reward model judges what the policy learns from another reward.
        "rewards.sources=[{kind: function, path: 'tests.test_own_data:short', normalize: true}, "
        "{kind: model, weight: 0}]",
        "rewards.quarantine_share=0.4",
        "model.lora={rank: 4}",
        "model.gradient_checkpointing=true",
        "sft.batch_size=8",
        "evaluate.judge=reward/model",
        "ppo.iterations=2",
        "ppo.best_of=1",
    ]
    return run_stages(load_config("configs/tiny.yaml", overrides)).root


@pytest.mark.timeout(600)
def test_rows_left_out_are_counted_in_the_results(run):
    results = json.loads((run / "reward" / "done.json").read_text())["results"]
    stats = {name: results[f"data/rankings/{name}"] for name in ("read", "invalid", "too_long", "kept")}
    assert stats == {"read": 42, "invalid": 1, "too_long": 1, "kept": 40}
    logged = [row for row in metrics(run, "reward") if "data/rankings/kept" in row]
    assert logged[-1]["data/rankings/too_long"] == 1


def test_folds_are_reported_with_an_interval_and_length_only(run):
    results = json.loads((run / "reward" / "done.json").read_text())["results"]
    assert results["folds/pairs"] == 40
    accuracy = results["folds/accuracy/labelers"]
    assert results["folds/accuracy/low"] <= accuracy <= results["folds/accuracy/high"]
    halves = (results["folds/accuracy/0"] + results["folds/accuracy/1"]) / 2
    assert accuracy == pytest.approx(halves, abs=0.06)
    assert results["folds/accuracy/length_only"] < 0.3  # the rejected responses are the longer ones


def test_ppo_learns_from_a_function_and_quarantines_its_failures(run):
    ppo = metrics(run, "ppo")
    assert [row["step"] for row in ppo] == [1, 2]
    assert all(math.isfinite(row["loss/policy_avg"]) and math.isfinite(row["loss/value_avg"]) for row in ppo)
    assert [row["objective/responses"] for row in ppo] == [14, 14]
    assert [row["rewards/quarantined"] for row in ppo] == [2, 4]
    quarantined = [json.loads(line) for line in (run / "ppo" / "quarantine.jsonl").read_text().splitlines()]
    assert {(row["prompt"], row["reason"].partition(" (")[0]) for row in quarantined} >= {
        ("What is 3 plus 3?", "LookupError: nobody knows")
    }
    assert all(row["sync/mean_error"] < 1e-5 for row in ppo)  # merged weights reached the engine


def test_a_reward_model_of_weight_0_judges_and_is_not_learned_from(run):
    ppo = metrics(run, "ppo")
    assert all(row["rewards/model"] != 0 for row in ppo)
    evaluation = json.loads((run / "evaluate" / "results.json").read_text())
    assert evaluation["win_rate"]["judge"] == "reward/model"
    for line in (run / "evaluate" / "answers.jsonl").read_text().splitlines():
        for answer in json.loads(line)["answers"].values():
            assert answer["reward"] in (None, -len(answer["text"]))  # None: the reward has failed
            assert answer["score"] != answer["reward"]
            assert "reward/model" not in answer
    sampled = evaluation["stages"]["ppo"]["sampled"]
    assert math.isfinite(sampled["score"])
    assert math.isfinite(sampled["score_error"])


def test_the_models_of_every_stage_are_plain_folders(run):
    tokens = torch.arange(8, 20)[None]
    models = [
        AutoModelForCausalLM.from_pretrained(run / stage / "model") for stage in ("pretrain", "sft", "ppo")
    ]
    assert not any("lora" in name for model in models for name, _ in model.named_parameters())
    first, second, third = (model(tokens).logits.float() for model in models)
    assert not torch.allclose(first, second)
    assert not torch.allclose(second, third)
