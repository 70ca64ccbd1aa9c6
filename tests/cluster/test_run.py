"""The run directory: one driver at a time, nothing removed by a refused command, complete files only."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.config import RunConfig
from cluster.fleets.scale import request_scale
from cluster.run.checkpoints import Checkpoints, CheckpointSchedule
from cluster.run.directory import RunDirectory
from cluster.run.report import write_report
from common.errors import DiskFullError, UserError
from common.files import read_json, write_json
from common.run_paths import RoundPaths, RunPaths, StagePaths


@pytest.fixture
def run(tmp_path):
    return RunDirectory(RunConfig(run_dir=str(tmp_path / "run")))


def changed(run, **values):
    return RunDirectory(run.config.model_copy(update=values))


def finish(run, *stages):
    for stage in stages:
        run.begin(stage)
        run.paths.stage(stage).model.mkdir(parents=True)
        run.finish(stage, 1.0, {})


def checkpoints_in(folder, keep=2):
    return Checkpoints(folder, save_state=lambda path: path.mkdir(parents=True), keep=keep)


def test_second_driver_is_refused(run):
    run.open()
    code = (
        "import sys; from cluster.config import RunConfig\n"
        "from cluster.run.directory import RunDirectory\n"
        "from common.errors import UserError\n"
        "try: RunDirectory(RunConfig(run_dir=sys.argv[1])).open()\n"
        "except UserError as error: print(error)"
    )
    command = [sys.executable, "-c", code, str(run.root)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "another `hero run` is at work" in output


def test_finished_stage_of_another_config_is_refused_and_kept(run):
    run.open()
    finish(run, "pretrain", "sft")
    run.close()
    other = changed(run, sft=run.config.sft.model_copy(update={"batch_size": 1}))
    refusal = r"stage sft was finished with other inputs: sft.batch_size 64 \(now 1\); .*add --from sft"
    with pytest.raises(UserError, match=refusal):
        other.open()
    with pytest.raises(UserError, match="stage sft"):
        other.open(redo="collect")
    assert run.done("sft")
    other.open(redo="sft")
    assert run.done("pretrain")
    assert not run.done("sft")


@pytest.mark.parametrize(("section", "value"), [("seed", 1), ("ppo", {"kl_coef": 0.2})])
def test_change_of_config_concerns_only_stages_that_use_it(run, section, value):
    run.open()
    finish(run, "pretrain", "sft", "ppo")
    run.close()
    stage = {"seed": "pretrain", "ppo": "ppo"}[section]
    if section == "ppo":
        value = run.config.ppo.model_copy(update=value)
    with pytest.raises(UserError, match=f"stage {stage} was finished with other inputs: {section}"):
        changed(run, **{section: value}).open()


def test_redone_stage_discards_later_ones_and_their_pointer(run):
    run.open()
    finish(run, "pretrain", "sft", "ppo")
    run.publish("ppo", 3, run.model("ppo"))
    assert read_json(run.paths.current)["version"] == 3
    run.paths.metrics.write_text('{"stage": "sft", "step": 1}\n{"stage": "ppo", "step": 1}\n{"stage": "p')
    run.discard_from("ppo")
    assert run.paths.metrics.read_text() == '{"stage": "sft", "step": 1}\n'
    assert run.done("sft")
    assert not run.paths.stage("ppo").folder.exists()
    assert not run.paths.version("ppo-3").exists()
    assert not run.paths.current.exists()


@pytest.mark.parametrize("path", ["file", "file/run", "/proc/run"])
def test_run_directory_that_cannot_be_is_one_message(tmp_path, path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"no directory that can be written to .* choose another run_dir"):
        RunDirectory(RunConfig(run_dir=str(tmp_path / path))).open()


def test_result_that_is_gone_is_named(run):
    run.open()
    finish(run, "sft")
    run.check_result("sft")
    run.paths.stage("sft").model.rmdir()
    with pytest.raises(
        UserError, match=r"sft/model is missing, although stage sft is finished; .*--from sft"
    ):
        run.check_result("sft")


def test_model_that_was_not_made_yet_is_named(run):
    with pytest.raises(UserError, match="run the sft stage first"):
        run.model("sft")


def test_run_of_an_older_layout_is_refused(run):
    run.root.mkdir()
    run.paths.config.write_text("name: x\n")  # no layout.json, as before it existed
    with pytest.raises(UserError, match="layout of an older version") as error:
        run.open()
    assert str(error.value).count("\n") == 0
    assert sorted(path.name for path in run.root.iterdir()) == ["config.yaml"]
    write_json(run.paths.layout, {"version": 1})
    with pytest.raises(UserError, match="layout of an older version"):
        run.open()


def test_new_run_records_its_layout(run):
    run.open()
    run.paths.check_layout()
    assert read_json(run.paths.layout)["version"] == 2


def test_a_checkpoint_is_due_after_steps_and_minutes(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    every_second = CheckpointSchedule(every=2, last_step=6)
    assert [step for step in range(1, 8) if every_second.is_due(step)] == [2, 4]
    schedule = CheckpointSchedule(every=2, last_step=100, minutes=1.0)
    written = []
    for step in range(1, 30):
        now[0] += 10
        if schedule.is_due(step):
            now[0] += 25  # the time of writing does not count
            schedule.saved(step)
            written.append(step)
    assert written == [6, 12, 18, 24]
    assert schedule.saved_step == 24


def test_checkpoints_keep_the_newest_and_ignore_uncommitted(tmp_path):
    checkpoints = checkpoints_in(tmp_path / "checkpoints")
    for step in (1, 2, 3):
        checkpoints.save(step)
        checkpoints.commit(step, {"kl_coef": step / 10})
    checkpoints.save(9)  # never committed
    assert checkpoints.latest() == {"step": 3, "kl_coef": 0.3}
    checkpoints.save(4)
    checkpoints.commit(4, {})
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["000003", "000004"]


def test_checkpoint_that_filled_the_disk_is_removed(tmp_path):
    def fail(path):
        path.mkdir(parents=True)
        (path / "shard.pt").write_bytes(b"01234")
        raise DiskFullError("full")

    checkpoints = checkpoints_in(tmp_path / "checkpoints")
    checkpoints.save(1)
    checkpoints.commit(1, {})
    with pytest.raises(DiskFullError):
        Checkpoints(checkpoints.folder, fail).save(2)
    assert checkpoints.latest() == {"step": 1}
    assert not checkpoints.path(2).exists()


def test_sizes_count_as_the_writers_report_them(tmp_path, capsys):
    def write_a_part(path):
        path.mkdir(parents=True)
        (path / "shard.pt").write_bytes(b"0123")
        return {"shard.pt": 10}  # what a rank on another host has written, of which this one sees 4 bytes

    checkpoints = Checkpoints(tmp_path, write_a_part)
    checkpoints.save(1)
    checkpoints.commit(1, {})
    assert checkpoints.latest() is None
    assert "shard.pt has 4 of 10 bytes" in capsys.readouterr().err
    (checkpoints.path(1) / "shard.pt").write_bytes(b"0123456789")
    assert checkpoints.latest() == {"step": 1}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("cut", "policy/shard.pt has 4 of 10 bytes"),
        ("removed", "has 0 of 10 bytes"),
        ("manifest cut", "was not finished"),
    ],
)
def test_corrupt_checkpoint_is_reported_and_the_one_before_used(tmp_path, capsys, damage, message):
    checkpoints = checkpoints_in(tmp_path)
    assert checkpoints.latest() is None
    for step in (1, 2):
        (checkpoints.path(step) / "policy").mkdir(parents=True)
        (checkpoints.path(step) / "policy" / "shard.pt").write_bytes(b"0123456789")
        checkpoints.commit(step, {"kl_coef": step / 10})
    shard = checkpoints.path(2) / "policy" / "shard.pt"
    if damage == "cut":
        os.truncate(shard, 4)
    elif damage == "removed":
        shard.unlink()
    else:
        os.truncate(checkpoints.path(2) / "manifest.json", 9)
    assert checkpoints.latest() == {"step": 1, "kl_coef": 0.1}
    assert message in capsys.readouterr().err


def test_scale_request_reaches_a_running_run_only(run):
    run.root.mkdir(parents=True, exist_ok=True)
    with pytest.raises(UserError, match="no run directory"):
        request_scale(run.root, ["rollout=2"])
    run.open()
    assert request_scale(run.root, ["rollout=2"]) == {"rollout": 2}
    assert request_scale(run.root, ["scoring=3"]) == {"rollout": 2, "scoring": 3}
    for item, message in (
        ("learner=4", "set learners.ranks"),
        ("rollout=0", "1 or more"),
        ("actor=2", "expected rollout=N"),
    ):
        with pytest.raises(UserError, match=message):
            request_scale(run.root, [item])
    run.close()
    with pytest.raises(UserError, match=r"start one with rollout\.actors=4 scoring\.actors=3"):
        request_scale(run.root, ["rollout=4"])


def test_folder_that_is_no_run_gets_no_report(tmp_path):
    with pytest.raises(UserError, match="not a run directory"):
        write_report(tmp_path)


def test_every_path_of_a_run_is_documented():
    text = Path("docs/run-directory.md").read_text()
    root = Path("RUN")
    paths = {*vars(RunPaths(root)).values(), *vars(StagePaths(root / "ppo")).values()}
    paths -= {root, root / "ppo"}
    assert len(paths) > 30
    documented = {name.rstrip("/") for name in re.findall(r"`([^`\s]+)`", text)}
    documented |= {name.replace("STAGE/", "ppo/") for name in documented}
    of_round = RoundPaths(root)
    paths |= {path for path in vars(of_round).values() if path not in vars(RunPaths(root)).values()}
    assert {str(path.relative_to(root)) for path in paths} - documented == set()
