"""`hero export`: a copy of the policy, and a card with the facts of its run."""

import json
import shutil

import pytest
import yaml
from typer.testing import CliRunner

from cluster.cli import app
from cluster.config_loader import load_config
from cluster.interchange.exporting import export_model
from cluster.run.directory import RunDirectory
from common.errors import UserError
from common.files import append_row, write_json
from common.run_paths import RunPaths
from learners.models import load_policy
from tests.learners.fixtures import make_files


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run directory with an imported base model, a reward model, PPO and an evaluation."""
    folder = tmp_path_factory.mktemp("export")
    make_files(folder)
    origin = {"source": "base.gguf", "sha256": "abc", "license": "apache-2.0", "name": "Base"}
    write_json(folder / "policy" / "import.json", origin | {"stored_as": "Q4_1"})
    data = folder / "pairs.jsonl"
    data.write_text("{}\n")
    sources = f"data={{rankings: {{path: {data}, convert: hh, split: 'train[:90%]'}}}}"
    overrides = [sources, f"model.path={folder / 'policy'}", f"run_dir={folder / 'run'}", "name=helpful"]
    config = load_config(None, [*overrides, "stages=[reward,ppo,evaluate]"])
    directory = RunDirectory(config)
    directory.open()
    paths = RunPaths(config.directory)
    shutil.copytree(folder / "policy", paths.stage("ppo").model)
    directory.publish("ppo", 4, paths.stage("ppo").model)
    results = {
        "accuracy/labelers": 0.62,
        "pairs": 230.0,
        "data/rankings/read": 2352,
        "data/rankings/kept": 2300,
    }
    write_json(paths.stage("reward").done, {"seconds": 90.0, "results": results})
    write_json(paths.stage("ppo").done, {"seconds": 60.0, "results": {"eval/reward": 0.5}})
    rates = {"greedy": {"reward": 0.25, "length": 40.5}}
    win = {
        "challenger": "ppo",
        "baseline": "base",
        "rate": 0.625,
        "low": 0.5,
        "high": 0.75,
        "count": 24,
        "judge": "j:f",
    }
    write_json(paths.evaluation, {"stages": {"base": rates, "ppo": rates}, "win_rate": win})
    made = {"consumed": [str(data)], "produced": [str(paths.root / "reward" / "model")]}
    append_row(paths.lineage, {"stage": "reward", "time": 1.0, **made})
    directory.close()
    return paths.root


def test_the_card_has_the_facts_of_the_run(finished, tmp_path):
    export_model(finished, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert (header["license"], header["base_model"]) == ("apache-2.0", "Base")
    for fact in (
        "# helpful, ppo-4",
        "Qwen3ForCausalLM",
        "in the stages reward, ppo, with seed 0",
        "base.gguf (Q4_1; SHA-256 abc; licence apache-2.0)",
        "/pairs.jsonl [train[:90%]] | hh | read 2,352, kept 2,300 |",
        "| reward | 1.5 | accuracy/labelers 0.62, pairs 230 |",
        "| base | greedy | 0.25 | 40.5 |",
        "preferred to base in 62.5% of 24 comparisons (95% interval 50.0% to 75.0%, ties half) by j:f",
        "ppo.advantage: gae",
        "/pairs.jsonl | reward/model |",
    ):
        assert fact in card, fact
    assert str(finished) not in card  # nothing of the machine that it was made on


def test_the_folder_is_the_policy_and_nothing_else(finished, tmp_path):
    export_model(finished, tmp_path / "out")
    policy = RunPaths(finished).stage("ppo").model
    expected = {file.name for file in policy.iterdir()} | {"README.md"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == expected
    weights = "model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (policy / weights).read_bytes()
    with pytest.raises(UserError, match="an export replaces nothing"):
        export_model(finished, tmp_path / "out")
    with pytest.raises(UserError, match="ppo-9: neither a version"):
        export_model(finished, tmp_path / "other", "ppo-9")


def test_export_and_import_by_command(finished, tmp_path):
    out, back = tmp_path / "out", tmp_path / "back"
    done = CliRunner().invoke(app, ["export", str(finished), str(out), "--gguf", "--version", "ppo"])
    assert done.exit_code == 0, done.output
    file = out / "helpful-ppo-f32.gguf"
    assert {path.name for path in out.iterdir()} == {file.name, "README.md"}
    assert f"llama-cli -m {file.name}" in (out / "README.md").read_text()
    done = CliRunner().invoke(app, ["import", str(file), str(back)])
    assert done.exit_code == 0, done.output
    assert json.loads((back / "import.json").read_text())["name"] == "helpful ppo"
    assert (
        load_policy(back).num_parameters()
        == load_policy(RunPaths(finished).stage("ppo").model).num_parameters()
    )
