"""A user's directory as it may be: its files have the names of this program's packages, the rewards use
signals and are coroutines, the judge gives numbers of numpy, paths are relative. The run, its endpoint
and a promotion work, the last two from another directory."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.plugins import PACKAGES
from learners.config import ModelConfig
from learners.data.tokenizer import train_tokenizer
from learners.models import build_policy
from tests.learners.fixtures import TEXTS
from tests.runs import environment, free_port, jsonl, metrics
from tests.serve.conftest import wait_for

HERO = str(Path(sys.executable).with_name("hero"))
HOSTILE = (*PACKAGES, "ray", "torch", "vllm", "datasets")
MINE = '''
import asyncio
import signal

import numpy as np


def problem(row):
    return [{"prompt": row["question"], "limit": 3}]


def compute_score(row, response, ended):
    """Limits its time by a signal."""
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.alarm(row["limit"])
    signal.alarm(0)
    return np.float32(len(response) / 10)


def judge(row, response, ended):
    return {"score": np.float32(1.5), "right": np.bool_(True)}
'''
OTHER = """
import asyncio


async def compute_score(row, response, ended):
    await asyncio.sleep(0)
    return None if "Peru" in row["prompt"] else 1.0
"""
CONFIG = """
name: mine
stages: [ppo, evaluate]
data:
  root: data
  prompts: {path: raw.jsonl, convert: "mine:problem"}
  heldout: {path: raw.jsonl, split: "train[2:]", convert: "mine:problem"}
model: {path: models/mine, context: 64}
learners: {ranks: 1, threads: 1, dtype: float32}
scoring: {threads: 1}
rewards:
  sources:
    - {kind: function, path: "mine:compute_score"}
    - {kind: function, path: "other:compute_score", workers: 2}
ppo: {advantage: grpo, iterations: 2, prompts: 4, responses: 2, max_response_tokens: 8, evaluate_prompts: 2,
      best_of: 1, evaluate_every: 1, publish_every: 1, dtype: float32}
evaluate: {judge: "mine:judge", max_response_tokens: 8}
rollout: {kv_cache_gib: 0.1, max_sequences: 16, threads: 1}
cluster: {object_store_gib: 0.1}
serve: {kv_cache_gib: 0.1, threads: 1, canary: {prompts: 2, max_tokens: 8}}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    for name in HOSTILE:
        (folder / f"{name}.py").write_text("raise RuntimeError('the wrong module')\n")
    (folder / "mine.py").write_text(MINE)
    (folder / "other.py").write_text(OTHER)
    (folder / "mine.yaml").write_text(CONFIG)
    (folder / "data").mkdir()
    countries = ("France", "Peru", "Chad", "Iran")
    rows = [{"question": f"What is the capital of {country}?"} for country in countries]
    (folder / "data" / "raw.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = ModelConfig(layers=2, width=64, heads=2, kv_heads=1, vocab_size=400, context=64)
    tokenizer = train_tokenizer(TEXTS, model.vocab_size)
    torch.manual_seed(0)
    build_policy(model, tokenizer, seed=1).save_pretrained(folder / "models" / "mine")
    tokenizer.save_pretrained(folder / "models" / "mine")
    return folder


def hero(*args, cwd, timeout=300):
    return subprocess.run(
        [HERO, *args], cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout
    )


@pytest.fixture(scope="module")
def run(home):
    done = hero("run", "mine.yaml", "--retries", "1", cwd=home)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return home / "runs" / "mine"


@pytest.mark.timeout(400)
def test_every_process_of_the_run_imports_the_right_modules(run):
    row, _ = metrics(run, "ppo")
    assert row["rewards/quarantined"] == 0
    assert row["rewards/mine:compute_score"] >= 0
    # Only where the source applies.
    assert row["rewards/other:compute_score"] == 1
    assert row["eval/score"] == 1.5
    (answers, _) = jsonl(run / "evaluate" / "answers.jsonl")
    measured = answers["answers"]["ppo"]
    assert (measured["score"], measured["right"]) == (1.5, True)
    assert measured["reward/other:compute_score"] == 1


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "moved", [pytest.param(False, marks=pytest.mark.slow), True], ids=["as-trained", "data-gone"]
)
def test_it_is_served_and_promoted_from_elsewhere(run, home, tmp_path, moved):
    versions = sorted(path.name for path in (run / "versions").iterdir())
    assert "ppo-1" in versions
    if moved:
        (home / "data").rename(tmp_path / "data")
    hostile = tmp_path / "elsewhere"
    hostile.mkdir()
    (hostile / "serve.py").write_text("raise RuntimeError('the wrong module')\n")
    output = tmp_path / "serve.log"
    with open(output, "w") as log:
        port = str(free_port())
        process = subprocess.Popen(
            [HERO, "serve", str(run), "--port", port],
            cwd=hostile,
            env=environment(),
            stdout=log,
            stderr=log,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

        def ready():
            assert process.poll() is None, output.read_text()[-3000:]
            return "in a browser" in output.read_text()

        try:
            wait_for(ready, 200, "hero serve")
            assert ("promotions: compared on general prompts" in output.read_text()) is moved
            other = next(name for name in versions if name != json_name(run / "current.json"))
            done = hero("promote", str(run), other, cwd="/")
            assert done.returncode == 0, done.stdout + done.stderr
            assert ("compared on general prompts" in done.stdout) is moved
            assert json_name(run / "current.json") == other
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=90) == 0
            if moved:
                (tmp_path / "data").rename(home / "data")


def json_name(pointer):
    current = json.loads(pointer.read_text())
    return f"{current['stage']}-{current['version']}"
