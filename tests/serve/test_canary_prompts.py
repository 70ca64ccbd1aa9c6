"""The canary's prompts are read as training reads them, from any working directory."""

import json
import sys

import pytest
import yaml

from common.errors import UserError
from common.run_paths import RunPaths
from serve.canary_prompts import GENERAL_PROMPTS, canary_prompts
from serve.config import CanaryConfig

CONVERT = "def problem(row):\n    return [{'prompt': row['question'].upper()}] if row['question'] else []\n"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run that was started in the folder `home`, with held-out prompts in another form."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "canary_conversion.py").write_text(CONVERT)
    questions = ["a", "", "b", "c", "d"]
    for name in ("raw", "more"):
        lines = [json.dumps({"question": f"{name} {q}" if q else ""}) for q in questions]
        (home / f"{name}.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(home)
    path = list(sys.path)
    paths = RunPaths(tmp_path / "run")
    paths.root.mkdir()
    paths.write_layout()
    monkeypatch.chdir("/")
    yield paths
    sys.path[:] = path
    sys.modules.pop("canary_conversion", None)


def configure(paths, *sources, **data):
    paths.config.write_text(yaml.safe_dump({"data": {"heldout": list(sources), **data}}))


def source(path, **more):
    return {"path": path, "convert": "canary_conversion:problem", **more}


def test_prompts_are_converted_and_of_all_sources(run):
    configure(run, source("raw.jsonl", split="train[:3]"), source("more.jsonl"))
    chosen = canary_prompts(CanaryConfig(prompts=4), run.root)
    assert chosen == (["RAW A", "RAW B", "MORE A", "MORE B"], "")


def test_a_run_whose_data_is_gone_is_compared_on_general_prompts(run):
    configure(run, source("moved.jsonl"))
    chosen = canary_prompts(CanaryConfig(prompts=4), run.root)
    assert chosen.prompts == list(GENERAL_PROMPTS[:4])
    assert "held-out prompts cannot be read" in chosen.note
    assert "moved.jsonl: no such file" in chosen.note


def test_a_conversion_that_is_gone_is_told_too(run):
    configure(run, {"path": "raw.jsonl", "convert": "nowhere_to_be_found:problem"})
    assert "there is no module nowhere_to_be_found" in canary_prompts(CanaryConfig(), run.root).note


def test_the_canarys_own_file_must_be_there(run, tmp_path):
    file = tmp_path / "canary.jsonl"
    with pytest.raises(UserError, match="no such file"):
        canary_prompts(CanaryConfig(file=str(file)), run.root)
    file.write_text('{"prompt": "Hello"}\n')
    assert canary_prompts(CanaryConfig(file=str(file)), run.root) == (["Hello"], "")


def test_prompts_of_the_quickstart_are_in_the_run(run):
    run.data("heldout").parent.mkdir()
    run.data("heldout").write_text('{"prompt": "Hello"}\n')
    assert canary_prompts(CanaryConfig(), run.root) == (["Hello"], "")
