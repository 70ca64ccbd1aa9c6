"""The run directory: one driver at a time, nothing removed by a refused command, whole files only."""

import os
import subprocess
import sys

import pytest

from cluster.config import RunConfig
from cluster.fleets.scale import request_scale
from cluster.run.checkpoints import Checkpoints
from cluster.run.directory import Run, read_json, write_json
from common.errors import UserError


@pytest.fixture
def run(tmp_path):
    return Run(RunConfig(run_dir=str(tmp_path / "run")))


def changed(run, **values):
    return Run(run.config.model_copy(update=values))


def finish(run, *stages):
    for stage in stages:
        (run.stage(stage) / "model").mkdir()
        run.finish(stage, 1.0, {})


def test_a_second_driver_is_refused(run):
    run.open()
    code = (
        "import sys; from cluster.config import RunConfig; from cluster.run.directory import Run\n"
        "from common.errors import UserError\n"
        "try: Run(RunConfig(run_dir=sys.argv[1])).open()\n"
        "except UserError as fault: print(fault)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, str(run.root)], capture_output=True, text=True, check=True
    ).stdout
    assert "another `hero run` is at work" in told


def test_a_finished_stage_of_another_config_is_refused_and_kept(run):
    run.open()
    finish(run, "pretrain", "sft")
    run.close()
    other = changed(run, sft=run.config.sft.model_copy(update={"batch_size": 1}))
    with pytest.raises(
        UserError, match="stage sft was finished with another configuration of sft; add --from sft"
    ):
        other.open()
    with pytest.raises(UserError, match="stage sft"):
        other.open(redo="collect")
    assert run.done("sft")
    other.open(redo="sft")
    assert run.done("pretrain")
    assert not run.done("sft")


def test_redoing_a_stage_forgets_what_comes_after_and_the_pointer_to_it(run):
    run.open()
    finish(run, "pretrain", "sft", "ppo")
    run.promote("ppo", 3, run.model("ppo"))
    run.forget("ppo")
    assert run.done("sft")
    assert not (run.root / "ppo").exists()
    assert not (run.root / "current.json").exists()


def test_a_model_that_was_not_made_yet_is_named(run):
    with pytest.raises(UserError, match="run the sft stage first"):
        run.model("sft")


def test_checkpoints_keep_the_newest_and_drop_what_a_death_left_half_written(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpoints.path(step).mkdir(parents=True)
        checkpoints.commit(step, {"kl_coef": step / 10})
    checkpoints.path(9).mkdir()  # never committed
    assert checkpoints.newest() == {"step": 3, "kl_coef": 0.3}
    checkpoints.path(4).mkdir()
    checkpoints.commit(4, {})
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["000003", "000004"]


@pytest.mark.parametrize("how", ["cut", "gone", "note cut"])
def test_a_checkpoint_that_is_not_whole_is_told_of_and_the_one_before_is_taken(tmp_path, capsys, how):
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.newest() is None
    for step in (1, 2):
        (checkpoints.path(step) / "policy").mkdir(parents=True)
        (checkpoints.path(step) / "policy" / "shard.pt").write_bytes(b"0123456789")
        checkpoints.commit(step, {"kl_coef": step / 10})
    shard = checkpoints.path(2) / "policy" / "shard.pt"
    if how == "cut":
        os.truncate(shard, 4)
    elif how == "gone":
        shard.unlink()
    else:
        os.truncate(checkpoints.path(2) / "manifest.json", 9)
    assert checkpoints.newest() == {"step": 1, "kl_coef": 0.1}
    told = {
        "cut": "policy/shard.pt has 4 of 10 bytes",
        "gone": "has 0 of 10 bytes",
        "note cut": "was not finished",
    }
    assert told[how] in capsys.readouterr().err


def test_a_wish_for_other_fleets_reaches_a_run_at_work_and_bad_ones_are_refused(run):
    run.root.mkdir(parents=True, exist_ok=True)
    with pytest.raises(UserError, match="no run directory"):
        request_scale(run.root, ["rollout=2"])
    run.open()
    assert request_scale(run.root, ["rollout=2"]) == {"rollout": 2}
    assert request_scale(run.root, ["scoring=3"]) == {"rollout": 2, "scoring": 3}
    for bad, why in (
        ("learner=4", "set learners.ranks"),
        ("rollout=0", "1 or more"),
        ("actor=2", "expected rollout=N"),
    ):
        with pytest.raises(UserError, match=why):
            request_scale(run.root, [bad])
    run.close()
    with pytest.raises(UserError, match=r"start one with rollout\.actors=4 scoring\.actors=3"):
        request_scale(run.root, ["rollout=4"])


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
