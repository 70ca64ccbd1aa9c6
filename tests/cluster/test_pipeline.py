"""`hero run` without Ray: exit codes by kind of error, retries, lost actors, skipped stages."""

import errno
import json
import os
from typing import ClassVar

import pytest

import cluster.pipeline
import cluster.stages.pretrain
from cluster.cli import main
from cluster.config_loader import load_config
from cluster.fleets.failures import LostObjectError
from cluster.pipeline import run_stages
from cluster.supervisor import is_retried
from common.errors import DiskFullError, FleetError, RunStoppedError, UserError, WeightSyncError

SMALL = ["stages=[pretrain]", "quickstart.documents=30", "cluster.max_restarts=2"]


class Fleets:
    """A FleetManager without actors; `lost` are the names that each call of `replace_lost` returns."""

    lost: ClassVar[list[list[str]]] = []

    def __init__(self, *_):
        self.closed = False

    def start(self, stages):
        pass

    def replace_lost(self):
        return self.lost.pop(0)

    def close(self):
        self.closed = True


@pytest.fixture
def hero(monkeypatch, capsys, tmp_path):
    """Runs `hero run` on a pretrain stage that calls `stage`; returns (exit code, standard error)."""

    def run(stage, *more):
        monkeypatch.setattr(cluster.stages.pretrain, "run", lambda context: stage())
        arguments = ["hero", "run", "configs/tiny.yaml", *SMALL, f"run_dir={tmp_path / 'run'}", *more]
        monkeypatch.setattr("sys.argv", arguments)
        monkeypatch.setattr("cluster.supervisor._handle", lambda number, handler: None)
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code
        return code or 0, " ".join(capsys.readouterr().err.split())

    monkeypatch.setattr(cluster.pipeline, "FleetManager", Fleets)
    monkeypatch.setattr(Fleets, "lost", [])
    monkeypatch.setenv("RAY_ADDRESS", "")
    return run


def raising(error):
    def stage():
        raise error

    return stage


@pytest.mark.parametrize(
    ("error", "code", "retried"),
    [
        (UserError("data.corpus=x: no such file"), 2, False),
        (RunStoppedError("alarms.stop has kl: 12 nats"), 3, False),
        (DiskFullError("checkpoint: 0 MiB are free"), 4, True),
        (OSError(errno.ENOSPC, "No space left on device"), 4, True),
        (PermissionError(errno.EACCES, "Permission denied", "run/logs"), 2, False),
        (WeightSyncError("weight sync to version 3: differs by 1.0"), 5, True),
        (KeyboardInterrupt(), 130, False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_exit_code_says_whether_a_retry_can_help(hero, error, code, retried):
    actual, message = hero(raising(error))
    assert actual == code
    named = getattr(error, "filename", None) or str(error)
    assert named in message
    assert "Traceback" not in message
    assert is_retried(code) == retried


def test_actor_that_failed_but_is_alive_ends_the_run(hero):
    Fleets.lost = [[]]
    code, message = hero(raising(FleetError("learner-0: train failed: ValueError")))
    assert (code, is_retried(code)) == (1, True)
    assert "learner-0: train failed" in message


def test_lost_actors_are_replaced_and_the_stage_continues(hero, tmp_path):
    attempts = iter([FleetError("rollout-0 died"), FleetError("learner-1 hangs"), None])

    def stage():
        error = next(attempts)
        if error:
            raise error
        return {"loss/validation": 1.0}

    Fleets.lost = [["rollout-0"], ["learner-0", "learner-1"]]
    code, message = hero(stage)
    assert code == 0, message
    assert "pretrain: rollout-0 died" in message
    assert "replaced learner-0, learner-1; continues from the last checkpoint" in message
    rows = [json.loads(line) for line in (tmp_path / "run" / "failures.jsonl").read_text().splitlines()]
    assert [row["replaced"] for row in rows] == [["rollout-0"], ["learner-0", "learner-1"]]
    assert [(row["stage"], row["error"]) for row in rows] == [
        ("pretrain", "rollout-0 died"),
        ("pretrain", "learner-1 hangs"),
    ]
    done = json.loads((tmp_path / "run" / "pretrain" / "done.json").read_text())
    assert done["results"]["loss/validation"] == 1.0


def test_lost_objects_are_made_again_although_every_actor_is_alive(hero, tmp_path):
    attempts = iter([LostObjectError("what rollout-0 returned in run_groups is lost"), None])

    def stage():
        error = next(attempts)
        if error:
            raise error
        return {}

    Fleets.lost = [[]]
    code, message = hero(stage)
    assert code == 0, message
    assert "is lost pretrain: replaced no actor; continues from the last checkpoint" in message


def test_more_failures_than_max_restarts_end_the_run(hero):
    Fleets.lost = [["rollout-0"]] * 3
    code, message = hero(raising(FleetError("rollout-0 died")))
    assert code == 1
    assert "that is failure 3 of this stage, over cluster.max_restarts=2" in message


def test_equal_failures_without_a_step_between_end_the_run_early(hero, tmp_path):
    Fleets.lost = [["rollout-0"]] * 8
    died = FleetError("rollout-0 died during update_weights")
    code, message = hero(raising(died), "cluster.max_restarts=10")
    assert code == 1
    assert "died during update_weights; that happened 3 times with nothing done between them" in message
    assert len(Fleets.lost) == 5


def test_equal_failures_with_steps_between_are_recovered(hero, tmp_path):
    attempts = []
    Fleets.lost = [["rollout-0"]] * 8

    def stage():
        attempts.append(1)
        if len(attempts) > 6:
            return {}
        with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
            file.write(f'{{"stage": "pretrain", "step": {len(attempts)}}}\n')
        os.utime(tmp_path / "run" / "metrics.jsonl", (0, 0))  # the clock of a file server that is behind
        raise FleetError("rollout-0 died during generate")

    assert hero(stage, "cluster.max_restarts=10")[0] == 0
    assert len(attempts) == 7


def test_finished_stage_is_skipped_and_from_does_it_again(hero, tmp_path):
    runs = []
    for more in ([], [], ["--from", "pretrain"]):
        assert hero(lambda: runs.append(1) or {}, *more)[0] == 0
    assert len(runs) == 2


@pytest.mark.parametrize(
    "damaged", ["config.yaml", "pretrain/done.json", "pretrain/inputs.json", "layout.json"]
)
def test_file_of_a_run_that_somebody_damaged_is_named(hero, tmp_path, damaged):
    assert hero(dict)[0] == 0
    (tmp_path / "run" / damaged).write_text('{"a": ')
    code, message = hero(dict)
    assert code == 2
    assert f"{damaged}: damaged" in message
    assert "Traceback" not in message


def test_interruption_between_the_end_of_a_stage_and_its_record_loses_no_checkpoint(hero, tmp_path):
    manifest = tmp_path / "run" / "pretrain" / "checkpoints" / "000010" / "manifest.json"

    def stage():
        manifest.parent.mkdir(parents=True)
        manifest.write_text("{}")
        raise KeyboardInterrupt

    assert hero(stage)[0] == 130
    assert manifest.exists()
    assert hero(dict)[0] == 0
    assert not manifest.exists()


def failing_judge(row, response, ended):
    return response.split()[0] == row["task"]


def test_judge_is_called_once_before_anything_is_trained(hero):
    trained = []
    judge = "evaluate.judge=tests.cluster.test_pipeline:failing_judge"
    more = ["stages=[pretrain,evaluate]", judge]
    code, message = hero(lambda: trained.append(1) or {}, *more)
    assert (code, trained) == (2, [])
    assert f"{judge}: IndexError" in message
    assert "called before training with an empty response" in message
    assert "Traceback" not in message


def test_retries_discard_the_stages_of_from_once(hero, monkeypatch, tmp_path):
    hero(dict)
    commands = []

    class Supervisor:
        def __init__(self, command, retries, report):
            commands.append((command[2:], retries))

        def run(self):
            return 137

    monkeypatch.setattr("cluster.supervisor.Supervisor", Supervisor)
    done = tmp_path / "run" / "pretrain" / "done.json"
    assert hero(dict, "--retries", "2", "--until", "pretrain")[0] == 137
    assert done.exists()
    assert hero(dict, "--retries", "2", "--from", "pretrain")[0] == 137
    assert not done.exists()
    arguments = ["cluster.cli", "run", "configs/tiny.yaml", *SMALL, f"run_dir={tmp_path / 'run'}"]
    assert commands == [([*arguments, "--until", "pretrain"], 2), (arguments, 2)]
    code, message = hero(dict, "--retries", "2", "--from", "nothing")
    assert (code, "--from nothing: not one of the config's stages" in message) == (2, True)


@pytest.mark.parametrize("option", [{"first": "sft"}, {"last": "sft"}])
def test_stage_outside_the_config_is_refused(tmp_path, option):
    config = load_config("configs/tiny.yaml", [*SMALL, f"run_dir={tmp_path / 'run'}"])
    with pytest.raises(UserError, match="not one of the config's stages"):
        run_stages(config, **option)
    assert not (tmp_path / "run").exists()


def test_a_policy_that_is_added_is_evaluated_beside_the_others(hero, monkeypatch, tmp_path):
    order = []

    def stage(name):
        def run(context=None):
            order.append(name)
            (tmp_path / "run" / name / "model").mkdir(parents=True, exist_ok=True)
            return {}

        return run

    for name in ("sft", "evaluate"):
        monkeypatch.setattr(f"cluster.stages.{name}.run", stage(name))
    alone = [*SMALL, "evaluate.judge=null"]
    assert hero(stage("pretrain"), *alone, "stages=[pretrain,evaluate]") == (0, "")
    added = "stages=[pretrain,sft,evaluate]"
    assert (
        hero(stage("pretrain"), *alone, added, "--until", "sft")[0] == 0
    )  # as an interruption before the end
    assert hero(stage("pretrain"), *alone, added)[0] == 0
    assert hero(stage("pretrain"), *alone, added)[0] == 0
    assert order == ["pretrain", "evaluate", "sft", "evaluate"]
