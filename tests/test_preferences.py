"""Best of n and DPO with the rankings and the reward model of the shared run, and every real component:
evaluated, published and continued."""

import json
import os
import shutil

import numpy as np
import pytest
import torch

from cluster.config_loader import load_config
from cluster.pipeline import run_stages
from cluster.stages import best_of_n
from common.files import write_json
from common.random_streams import Stream, generator
from common.run_paths import RunPaths
from learners.data.tokenizer import train_tokenizer
from learners.data.tokenizer_loading import load_tokenizer
from learners.models import build_policy, load_scalar, scalar_from_policy
from serve.versions import current_policy
from tests.runs import jsonl, metrics

CHUNK = 16
OVERRIDES = [
    "stages=[sft,best_of_n,dpo,evaluate]",
    # The policy of the shared run hardly ever ends a response, and best of n needs whole ones.
    "sft.epochs=8",
    "sft.optimizer={lr: 4.0e-3}",
    "best_of_n.prompts=48",
    "best_of_n.responses=4",
    "best_of_n.max_response_tokens=24",
    "best_of_n.batch_size=8",
    "best_of_n.epochs=2",
    "best_of_n.optimizer.warmup_steps=0",
    "dpo.batch_size=4",
    "dpo.epochs=3",
    "dpo.beta=0.05",
    "dpo.optimizer={lr: 1.0e-3, warmup_steps: 0, schedule: constant}",
    "evaluate.samples=2",
]


@pytest.fixture(scope="module")
def preferences(run, tmp_path_factory):
    root = tmp_path_factory.mktemp("preferences") / "run"
    for stage in ("data", "pretrain", "collect", "reward"):
        shutil.copytree(run / stage, root / stage)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(best_of_n, "CHUNK", CHUNK)
        return run_stages(load_config("configs/tiny.yaml", [f"run_dir={root}", *OVERRIDES])).root


@pytest.mark.timeout(600)
def test_chosen_responses_are_the_best_of_the_whole_ones(run, preferences):
    rows = jsonl(RunPaths(preferences).chosen)
    results = json.loads(RunPaths(preferences).stage("best_of_n").done.read_text())["results"]
    assert 0 < len(rows) == results["chosen"] <= results["prompts"] == 48
    assert all(len(row["rewards"]) == 4 and row["reward"] in row["rewards"] for row in rows)
    assert results["reward/chosen"] == pytest.approx(np.mean([row["reward"] for row in rows]))
    assert results["reward/chosen"] > results["reward/all"]
    assert results["kl/best_of_n"] == pytest.approx(np.log(4) - 3 / 4)
    assert results["data/demonstrations/kept"] <= len(rows)  # equal ones are learned once


def test_dpo_learns_the_rankings(run, preferences):
    rows = metrics(preferences, "dpo")
    losses = [row["loss/train"] for row in rows if "loss/train" in row]
    assert losses[0] == pytest.approx(np.log(2), abs=1e-4)
    assert np.mean(losses[-3:]) < losses[0] - 0.01
    last = rows[-1]
    assert last["rewards/margin"] == pytest.approx(last["rewards/better"] - last["rewards/worse"])
    assert np.load(RunPaths(preferences).dpo_reference).ndim == 1


def test_evaluation_moves_and_compares_with_the_sft_policy(run, preferences):
    results = json.loads(RunPaths(preferences).evaluation.read_text())
    rates = {stage: decodings["sampled"] for stage, decodings in results["stages"].items()}
    assert list(rates) == ["pretrain", "sft", "best_of_n", "dpo"]
    assert rates["sft"]["kl"] == pytest.approx(0, abs=1e-4)
    assert rates["best_of_n"]["kl"] > 0.01
    assert rates["dpo"]["kl"] > 0.01
    assert (results["win_rate"]["baseline"], results["win_rate"]["challenger"]) == ("sft", "dpo")


def test_policies_are_published_and_reported(run, preferences):
    paths = RunPaths(preferences)
    assert current_policy(preferences).name.startswith("dpo-")
    assert {name.partition("-")[0] for name in os.listdir(paths.versions)} >= {"best_of_n", "dpo"}
    report = paths.report.read_text()
    assert "DPO loss" in report
    assert "SFT loss on the best of n" in report


@pytest.mark.slow
def test_an_interrupted_best_of_n_continues_with_the_same_responses(run, preferences):
    """As after a kill in the second chunk of prompts."""
    paths = RunPaths(preferences)
    before = paths.chosen.read_text().splitlines(keepends=True)
    prompts = [row["prompt"] for row in jsonl(paths.data("prompts"))]
    order = generator(0, Stream.BEST_OF_N_PROMPTS).permutation(len(prompts))
    first = {prompts[i] for i in order[:CHUNK]}
    lines = sum(json.loads(line)["messages"][0]["content"] in first for line in before)
    paths.stage("best_of_n").done.unlink()
    write_json(paths.best_of_n_progress, {"prompts": CHUNK, "lines": lines, "quarantined": 0})
    # What was written after the last complete chunk is removed.
    paths.chosen.write_text("".join(before[: lines + 2]) + '{"messages": [')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(best_of_n, "CHUNK", CHUNK)
        config = load_config("configs/tiny.yaml", [f"run_dir={preferences}", *OVERRIDES])
        run_stages(config, last="best_of_n")
    assert paths.chosen.read_text().splitlines(keepends=True) == before


TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|end_of_turn|>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_reward_model_of_other_tokens_is_trained_and_scores_the_policys_texts(run, tmp_path):
    base, root = tmp_path / "other", tmp_path / "run"
    rankings = jsonl(RunPaths(run).rankings)
    tokenizer = train_tokenizer([text for row in rankings for text in row["responses"]], 330)
    tokenizer.chat_template = TEMPLATE.replace("<|end_of_turn|>", tokenizer.eos_token)
    settings = load_config("configs/tiny.yaml").model
    build_policy(settings, tokenizer, seed=3).save_pretrained(base)
    scalar_from_policy(base, seed=4).save_pretrained(base)
    tokenizer.save_pretrained(base)
    for stage in ("data", "pretrain", "sft", "collect"):
        shutil.copytree(run / stage, root / stage)
    overrides = [
        f"run_dir={root}",
        "stages=[reward,ppo]",
        f"reward_model.path={base}",
        "ppo.iterations=1",
        "ppo.evaluate_every=1",
        "ppo.best_of=1",
    ]
    run_stages(load_config("configs/tiny.yaml", overrides))
    trained = RunPaths(root).stage("reward").model
    own = load_tokenizer(trained)
    assert own.get_vocab() == tokenizer.get_vocab()
    model = load_scalar(trained)
    bias = json.loads((trained / "config.json").read_text())["reward_bias"]
    for row in jsonl(RunPaths(root).samples):
        end = own.eos_token
        text = f"[user] {row['prompt']}{end}\n[assistant] {row['text']}{end if row['ended'] else ''}"
        tokens = torch.tensor([own.encode(text, add_special_tokens=False)])
        with torch.no_grad():
            score = float(model.score(model.base_model(tokens).last_hidden_state[0, -1])) - bias
        assert row["reward"] == pytest.approx(score, abs=1e-4), row
