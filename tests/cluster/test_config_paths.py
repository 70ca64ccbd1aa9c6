"""Paths of a config that hold in any working directory."""

import re
from pathlib import Path

import pytest

from cluster.config import RunConfig
from cluster.config_loader import all_keys
from cluster.config_paths import FILES, MODELS, absolute_paths

FROM_DATA_ROOT = re.compile(r"data\.\w+\.path")
NO_FILES = ("rewards.sources.path", "rounds.judge.path", "run_dir")
"""Functions; what has its own default."""


def test_every_key_that_names_a_file_is_known():
    known = {*FILES, *MODELS}
    for key in all_keys(RunConfig):
        is_path = re.search(r"(path|dir|root|file|template|keys)$", key)
        if is_path and not FROM_DATA_ROOT.fullmatch(key) and key not in NO_FILES:
            assert (
                re.sub(
                    r"^(serve.models|rewards.sources|sample.policies|evaluate.policies|reward_model.compare)\.",
                    r"\1.*.",
                    key,
                )
                in known
            ), key


def test_relative_paths_start_where_the_run_does(tmp_path, monkeypatch):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.setenv("HOME", "/home/someone")
    config = RunConfig(
        data={"root": "data", "prompts": "prompts.jsonl"},
        model={"path": "models/mine", "chat_template": "~/chat.jinja"},
        reward_model={"path": "owner/reward"},
        rewards={
            "sources": [
                {"kind": "model", "path": "models/mine", "chat_template": "t.jinja"},
                {"kind": "judge", "base_url": "http://h", "model": "m", "template": "judge.txt"},
                {"kind": "function", "path": "a:b"},
            ]
        },
        learners={"weights_dir": "/dev/shm/weights"},
        serve={
            "api_keys": "keys",
            "canary": {"file": "canary.jsonl"},
            "models": {"base": {"path": "models/mine"}, "sft": {"path": "sft"}},
        },
    )
    absolute = absolute_paths(config, tmp_path)
    assert absolute.data.root == str(tmp_path / "data")
    assert absolute.data.prompts[0].path == "prompts.jsonl"
    assert absolute.model.path == str(tmp_path / "models" / "mine")
    assert absolute.model.chat_template == "/home/someone/chat.jinja"
    assert absolute.reward_model.path == "owner/reward"
    model, judge, function = absolute.rewards.sources
    assert (model.path, model.chat_template) == (str(tmp_path / "models" / "mine"), str(tmp_path / "t.jinja"))
    assert (judge.template, judge.cache) == (str(tmp_path / "judge.txt"), None)
    assert function.path == "a:b"
    assert absolute.learners.weights_dir == "/dev/shm/weights"
    assert absolute.serve.api_keys == str(tmp_path / "keys")
    assert absolute.serve.canary.file == str(tmp_path / "canary.jsonl")
    assert absolute.serve.models["base"].path == str(tmp_path / "models" / "mine")
    assert absolute.serve.models["sft"].path == "sft"
    assert config.model.path == "models/mine"
    assert "max_tokens" not in absolute.serve.decoding.model_fields_set


@pytest.mark.parametrize("start", ["/", "relative"])
def test_paths_that_are_absolute_stay(start):
    assert absolute_paths(RunConfig(data={"root": "/data"}), Path(start)).data.root == "/data"
