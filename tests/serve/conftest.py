"""A run directory with three versions of a small policy, made of random weights: all that serving needs of training."""

import json
import socket
from pathlib import Path

import torch
import yaml

from cluster.config import RunConfig
from cluster.run import Run
from learners.config import ModelConfig
from learners.models import build_policy, scalar_from_policy
from learners.tokenizer import train_tokenizer
from serve.versions import point
from tests.learners.worlds import TEXTS

MODEL = ModelConfig(layers=2, width=64, heads=2, kv_heads=1, vocab_size=400, context=512)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def make_run(root: Path, **settings) -> Run:
    """Versions sft-0, ppo-1 and ppo-2 are near each other; bad-1 is far away. sft-0 is served."""
    run = Run(RunConfig(run_dir=str(root), serve={"kv_cache_gib": 0.1, "keep_versions": 9, **settings}))
    (root / "data").mkdir(parents=True)
    prompts = [{"prompt": f"What is the capital of {place}?"} for place in ("France", "Peru", "Chad", "Iran")]
    (root / "data" / "heldout.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    (root / "config.yaml").write_text(yaml.safe_dump(run.config.model_dump(mode="json")))
    tokenizer = train_tokenizer(TEXTS, MODEL.vocab_size)
    policy = build_policy(MODEL, tokenizer, seed=1)
    for stage, version, noise in (("sft", 0, 0.0), ("ppo", 1, 0.01), ("ppo", 2, 0.01), ("bad", 1, 5.0)):
        folder = run.stage(stage) / ("model" if version == 0 else f"model-{version}")
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter += torch.randn_like(parameter) * noise * parameter.std().nan_to_num(0.0)
        policy.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        run.promote(stage, version, folder)
    scalar_from_policy(root / "sft" / "model", seed=2).save_pretrained(run.stage("reward") / "model")
    point(root, "sft-0", who="test", why="start")
    return run
