"""A model of the user's whose head is more than a matrix (Granite), through SFT, PPO without a KL penalty
and the evaluation, with every real component."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GraniteConfig, GraniteForCausalLM

from cluster.config_loader import load_config
from cluster.pipeline import run_stages
from common.run_paths import RunPaths
from learners.data.datasets import TokenData
from learners.data.tokenizer import end_token, train_tokenizer
from tests.runs import metrics

pytestmark = pytest.mark.timeout(600)


def short(row, response, ended):
    return -float(len(response))


def make_model(folder):
    texts = [f"What is {n} plus {m}? It is {n + m}." for n in range(9) for m in range(9)]
    tokenizer = train_tokenizer(texts, 320)
    config = GraniteConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        logits_scaling=8.0,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=end_token(tokenizer),
    )
    torch.manual_seed(0)
    GraniteForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own_model")
    make_model(folder / "model")
    write_rows(folder / "prompts.jsonl", [{"prompt": f"What is {n} plus {n}?"} for n in range(8)])
    pairs = [(n, m) for n in range(6) for m in range(7)]
    rows = [{"prompt": f"What is {n} plus {m}?", "response": f"It is {n + m}."} for n, m in pairs]
    write_rows(folder / "demonstrations.jsonl", rows)
    write_rows(folder / "corpus.jsonl", [{"text": f"{n} plus {m} is {n + m}. " * 4} for n, m in pairs])
    return folder


def run_from(folder, name, stages, *overrides):
    common = [
        f"run_dir={folder / name}",
        f"stages={stages}",
        *(f"model.{key}=" for key in ("layers", "width", "heads", "kv_heads", "vocab_size")),
        f"model.path={folder / 'model'}",
        f"data.root={folder}",
        "data.prompts=prompts.jsonl",
        "data.heldout=prompts.jsonl",
        "data.demonstrations=demonstrations.jsonl",
        "rewards.sources=[{kind: function, path: 'tests.test_own_model:short'}]",
        "evaluate.judge=tests.test_own_model:short",
    ]
    return run_stages(load_config("configs/tiny.yaml", [*common, *overrides])).root


@pytest.fixture(scope="module")
def run(folder):
    settings = ("sft.batch_size=8", "sft.epochs=4", "learners.dtype=float32")
    ppo = ("ppo.advantage=grpo", "ppo.kl_coef=0", "ppo.iterations=2", "ppo.best_of=1", "alarms.stop=[length]")
    corpus = (
        "data.corpus=corpus.jsonl",
        "pretrain.sequence_length=32",
        "ppo.ptx_coef=0.5",
        "ppo.ptx_tokens=64",
    )
    return run_from(folder, "run", "[sft,ppo,evaluate]", *settings, *ppo, *corpus)


def test_the_validation_loss_is_that_of_the_saved_model(run):
    paths = RunPaths(run)
    model = AutoModelForCausalLM.from_pretrained(paths.stage("sft").model)
    data = TokenData.load(paths.demonstration_tokens)
    losses = []
    for item in np.flatnonzero(data.is_validation_S):
        tokens_T = torch.from_numpy(data.sequence(item).astype(np.int64))
        with torch.no_grad():
            log_p_TV = model(tokens_T[None]).logits[0].log_softmax(-1)
        logprobs_T = log_p_TV[:-1].gather(1, tokens_T[1:, None]).squeeze(1)
        losses += (-logprobs_T[torch.from_numpy(data.loss_mask(item)[1:])]).tolist()
    logged = [row["loss/validation"] for row in metrics(run, "sft") if "loss/validation" in row]
    assert logged[-1] == pytest.approx(np.mean(losses), rel=1e-4)
    assert logged[-1] < logged[0] or len(logged) == 1


def test_without_a_penalty_nothing_needs_the_reference(run):
    rows = metrics(run, "ppo")
    assert [row["step"] for row in rows] == [1, 2]
    names = {name for row in rows for name in row}
    assert not {name for name in names if name in ("objective/kl", "objective/non_score_reward", "eval/kl")}
    assert "objective/rlhf_reward" in names
    # vLLM computes the same head.
    assert all(row["mismatch/max"] < 1e-4 for row in rows)


def test_a_policy_from_elsewhere_learns_from_text_beside_rewards(run):
    rows = metrics(run, "ppo")
    assert all(0 < row["loss/ptx"] < 10 for row in rows)
    assert any("eval/pretrain_loss" in row for row in rows)
    assert TokenData.load(run / "ppo" / "tokens.npz").lengths_S.tolist()[0] == 32
    lineage = [json.loads(line) for line in (run / "lineage.jsonl").read_text().splitlines()]
    assert any(path.endswith("corpus.jsonl") for path in lineage[-1]["consumed"])


def test_the_starting_model_is_evaluated_beside_those_of_the_stages(run):
    results = json.loads(RunPaths(run).evaluation.read_text())
    assert list(results["stages"]) == ["base", "sft", "ppo"]
    assert (results["win_rate"]["challenger"], results["win_rate"]["baseline"]) == ("ppo", "sft")
    assert "kl" not in results["stages"]["base"]["sampled"]


def test_a_model_alone_can_be_evaluated(folder):
    results = json.loads(RunPaths(run_from(folder, "alone", "[evaluate]")).evaluation.read_text())
    assert list(results["stages"]) == ["base"]
    # The model is its own reference.
    assert results["stages"]["base"]["sampled"]["kl"] == pytest.approx(0, abs=1e-3)
    assert "win_rate" not in results
