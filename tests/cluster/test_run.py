"""The run directory: one driver at a time, nothing removed by a refused command, whole files only."""

import subprocess
import sys

import pytest

from cluster.config import RunConfig
from cluster.run import Checkpoints, Run, read_json, write_json
from learners.errors import UserError


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
        "import sys; from cluster.config import RunConfig; from cluster.run import Run\n"
        "from learners.errors import UserError\n"
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
    with pytest.raises(UserError, match="stage sft was finished with another configuration of sft; add --from sft"):
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
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["000003", "000004", "newest.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
