"""What was begun with other inputs is never used: it is refused by key, or made again where nothing is
lost."""

import os
import shutil

import pytest
from rich.console import Console

from cluster.config import RunConfig
from cluster.pipeline import make_quickstart_data
from cluster.plan import print_plan
from cluster.run.directory import RunDirectory
from cluster.run.stage_inputs import PIECE, PIECES, content, stage_inputs
from cluster.stage_registry import STAGES
from common.errors import UserError
from common.files import read_json, write_json


@pytest.fixture
def settings(tmp_path):
    """A run from the user's own corpus and model."""
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "b.txt").write_text("three\n\nfour\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return {
        "run_dir": str(tmp_path / "run"),
        "stages": ["pretrain", "sft"],
        "data": {"root": str(tmp_path), "corpus": "a.txt"},
        "model": {"path": str(tmp_path / "model")},
    }


def opened(settings, **sections):
    """The run, opened as `hero run` does it; `sections` change some keys of the settings."""
    values = dict(settings)
    for section, keys in sections.items():
        values[section] = {**values.get(section, {}), **keys} if isinstance(keys, dict) else keys
    run = RunDirectory(RunConfig.model_validate(values))
    try:
        run.open()
    finally:
        run.close()
    return run


def interrupt(run, stage, checkpoint=True):
    run.begin(stage)
    (run.stage(stage) / "tokens.npz").write_text("packed")
    if checkpoint:
        write_json(run.paths.stage(stage).checkpoints / "000010" / "manifest.json", {})


def test_stage_with_a_checkpoint_is_refused_by_key_until_it_is_put_back(settings):
    interrupt(opened(settings), "pretrain")
    with pytest.raises(UserError) as caught:
        opened(settings, data={"corpus": "b.txt"}, pretrain={"sequence_length": 32})
    message = str(caught.value)
    assert "stage pretrain was interrupted with other inputs: " in message
    assert "data.corpus" in message
    assert "pretrain.sequence_length 128 (now 32)" in message
    assert "--from pretrain" in message
    assert "\n" not in message
    # The refusal has changed nothing.
    run = opened(settings)
    assert (run.paths.stage("pretrain").folder / "tokens.npz").exists()
    assert read_json(run.paths.stage("pretrain").inputs)


def test_plan_foretells_the_refusal_after_its_tables(tmp_path):
    learners = {"dtype": "float32"}  # `hero run` resolves auto before it opens a run
    settings = {"run_dir": str(tmp_path / "run"), "stages": ["pretrain"], "learners": learners}
    interrupt(opened(settings), "pretrain")
    changed = RunConfig.model_validate({**settings, "pretrain": {"sequence_length": 32}})
    console = Console(record=True, width=200)
    with pytest.raises(UserError, match=r"pretrain.sequence_length 128 \(now 32\)"):
        print_plan(changed, console)
    assert "Placement" in console.export_text()
    print_plan(RunConfig.model_validate(settings), console)


def test_stage_without_a_checkpoint_begins_again(settings, capsys):
    run = opened(settings)
    interrupt(run, "pretrain", checkpoint=False)
    opened(settings)
    assert run.paths.corpus_tokens.exists()
    opened(settings, data={"corpus": "b.txt"})
    assert not run.paths.stage("pretrain").folder.exists()
    message = "pretrain: interrupted before a checkpoint with other inputs: data.corpus; begins again"
    assert message in capsys.readouterr().err


def test_interrupted_stage_without_a_record_is_not_continued(settings):
    run = opened(settings)
    interrupt(run, "sft")
    run.paths.stage("sft").inputs.unlink()
    with pytest.raises(UserError, match=r"stage sft was interrupted with .*inputs that an older version"):
        opened(settings)


@pytest.mark.parametrize(
    ("stage", "file"),
    [("collect", "responses.jsonl"), ("reward", "folds/counts.json"), ("best_of_n", "progress.json")],
)
def test_responses_and_folds_are_work_that_is_not_thrown_away(settings, stage, file):
    settings = {**settings, "stages": list(STAGES)}
    run = opened(settings)
    run.begin(stage)
    write_json(run.stage(stage) / file, [])
    opened(settings)
    with pytest.raises(
        UserError, match=rf"stage {stage} was interrupted with other inputs: seed 0 \(now 1\)"
    ):
        opened(settings, seed=1)
    assert (run.stage(stage) / file).exists()


@pytest.mark.parametrize(
    ("section", "keys"),
    [
        ("learners", {"threads": 2, "micro_batch_tokens": 8192, "packing": False}),
        ("model", {"gradient_checkpointing": True, "attention": "eager"}),
        ("cluster", {"max_restarts": 3, "object_store_gib": 0.2}),
        ("rollout", {"actors": 2}),
        ("sft", {"checkpoint_every": 7}),
        ("data", {"max_invalid_rows": 5, "rankings": "b.txt"}),
        ("quickstart", {"documents": 30}),
        ("name", "other"),
    ],
)
def test_what_changes_no_result_does_not_stop_a_run(settings, section, keys):
    settings["data"]["demonstrations"] = "a.txt"
    run = opened(settings)
    for stage in settings["stages"]:
        interrupt(run, stage)
    opened(settings, **{section: keys})
    for stage in settings["stages"]:
        run.finish(stage, 1.0, {})
    opened(settings, **{section: keys})


def test_checkpoint_of_muon_on_other_ranks_is_refused_and_a_result_is_not(settings):
    muon = {**settings.get("sft", {}), "optimizer": {"kind": "muon"}}
    run = opened(settings, sft=muon)
    interrupt(run, "sft")
    refusal = (
        r"sft was interrupted with other inputs: learners.ranks 2 \(now 1\), learners.zero_stage 2 \(now 3\)"
    )
    with pytest.raises(UserError, match=refusal):
        opened(settings, learners={"ranks": 1, "zero_stage": 3}, sft=muon)
    run.finish("sft", 1.0, {})
    opened(settings, learners={"ranks": 1, "zero_stage": 3}, sft=muon)


def test_checkpoint_of_adamw_goes_on_with_other_ranks(settings):
    run = opened(settings)
    interrupt(run, "sft")
    assert opened(settings, learners={"ranks": 1, "zero_stage": 3}).check_inputs() == {}


def test_file_counts_by_its_content_and_not_by_place_or_time(settings, tmp_path):
    run = opened(settings)
    interrupt(run, "pretrain")
    os.utime(tmp_path / "a.txt", (0, 0))
    opened(settings)
    (tmp_path / "moved").mkdir()
    shutil.copy(tmp_path / "a.txt", tmp_path / "moved" / "a.txt")
    opened(settings, data={"root": str(tmp_path / "moved")})
    (tmp_path / "a.txt").write_text("one\n\nten\n")
    with pytest.raises(UserError, match=r"other inputs: data\.corpus; "):
        opened(settings)


def test_model_that_was_replaced_in_its_folder_is_told(settings, tmp_path):
    run = opened(settings)
    interrupt(run, "sft")
    (tmp_path / "model" / "config.json").write_text('{"layers": 3}')
    with pytest.raises(UserError, match=r"stage sft .*other inputs: model\.path; "):
        opened(settings)


def test_model_of_an_earlier_start_is_not_used_in_place_of_the_one_that_is_named(settings, tmp_path):
    run = opened(settings)
    interrupt(run, "sft")
    run.finish("sft", 1.0, {})
    later = {**settings, "stages": ["ppo"]}
    opened(later)
    opened({**later, "model": {}})
    shutil.copytree(tmp_path / "model", tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text('{"layers": 3}')
    with pytest.raises(UserError, match=r"stage sft, whose result this run uses, .*another model\.path"):
        opened({**later, "model": {"path": str(tmp_path / "other")}})


def test_content_of_folders_patterns_large_files_and_hub_names(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}")
    of_folder, of_pattern = content(tmp_path), content(tmp_path / "*.jsonl")
    assert of_folder.startswith("sha256:")
    assert content(tmp_path / "none.jsonl") == str(tmp_path / "none.jsonl")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "time").write_text("1")
    assert content(tmp_path) == of_folder
    (tmp_path / "b.jsonl").write_text("{}")
    assert content(tmp_path) != of_folder
    assert content(tmp_path / "*.jsonl") != of_pattern
    large = tmp_path / "large.bin"
    with open(large, "wb") as file:
        file.truncate(PIECE * PIECES + 5)
    before = content(large)
    with open(large, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"1")
    assert content(large) != before


def test_quickstart_counts_only_where_a_stage_reads_its_data(settings):
    config = RunConfig.model_validate(settings)
    assert "quickstart" not in stage_inputs(config, "pretrain")
    assert "quickstart" in stage_inputs(config, "sft")


def test_generated_data_is_made_again_for_a_stage_that_is_done_again(tmp_path):
    settings = {"run_dir": str(tmp_path / "run"), "stages": ["pretrain"], "quickstart": {"documents": 30}}
    run = opened(settings)
    make_quickstart_data(run)
    first = run.paths.data("corpus").read_text()
    run.begin("pretrain")
    run.finish("pretrain", 1.0, {})
    other = {**settings, "quickstart": {"documents": 40, "seed": 7}}
    with pytest.raises(UserError, match=r"quickstart.seed 0 \(now 7\).*; .*add --from pretrain"):
        opened(other)
    assert run.paths.data("corpus").read_text() == first
    again = RunDirectory(RunConfig.model_validate(other))
    again.open(redo="pretrain")
    make_quickstart_data(again)
    again.close()
    assert run.paths.data("corpus").read_text().count("\n\n") == 39
