"""Fleets of real Ray actors: what the driver learns when one of them fails, and what is refused
before it would hang."""

import os
import signal
import time

import psutil
import pytest
import ray
from ray.exceptions import ActorUnavailableError, ObjectLostError, RayTaskError

from cluster.config import ClusterConfig, RunConfig
from cluster.context import Context
from cluster.fleets.failures import LostObjectError
from cluster.fleets.fleet import Fleet
from cluster.fleets.manager import FleetManager
from cluster.layout import SECTIONS
from cluster.pipeline import run_with_recovery
from cluster.run.directory import RunDirectory
from cluster.stage_registry import StageSpec
from common.errors import DiskFullError, FleetError, StartError
from common.files import write_json
from common.ray_session import start_ray
from tests.cluster.hosted import ERRORS, WORKER


@pytest.fixture(scope="module")
def session():
    start_ray(cpus=2)
    yield
    ray.shutdown()


@pytest.fixture
def make_fleet(session, tmp_path):
    """Makes fleets of Workers, one for each number, or each dict of arguments; stops them at the end."""
    fleets = []

    def make(numbers, kind="worker", **limits):
        arguments = [number if isinstance(number, dict) else {"number": number} for number in numbers]
        fleet = Fleet(kind, WORKER, arguments, {"num_cpus": 0}, tmp_path, ClusterConfig(**limits))
        fleets.append(fleet)
        return fleet

    yield make
    for fleet in fleets:
        fleet.stop()


@pytest.fixture
def fleet(make_fleet):
    return make_fleet([0, 1])


def test_results_are_in_actor_order_and_object_refs_arrive_as_values(fleet):
    assert fleet.all("double", 5) == [10, 11]
    assert fleet.all("double", ray.put(7)) == [14, 15]
    assert min(fleet.busy()) >= 0


def test_death_ends_the_wait_and_names_actor_and_log(fleet, tmp_path):
    victim = fleet.all("pid")[1]
    refs = [fleet.submit(i, "sleep") for i in range(2)]
    time.sleep(0.5)
    os.kill(victim, signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(FleetError, match="worker-1 died during generation") as caught:
        fleet.wait(refs, "generation")
    assert str(tmp_path / "worker-1.log") in str(caught.value)
    assert time.monotonic() - started < 30


def test_failure_names_actor_and_cause_and_log_has_the_traceback(fleet, tmp_path):
    with pytest.raises(FleetError, match=r"worker-0 failed in fail_if \(ZeroDivisionError: no tokens\)"):
        fleet.all("fail_if", 0)
    text = (tmp_path / "worker-0.log").read_text()
    assert "Traceback" in text
    assert "no tokens" in text


def test_full_disk_of_an_actor_has_its_own_exit_code(fleet):
    with pytest.raises(DiskFullError, match=r"worker-. cannot write in fill_the_disk \(.*/dev/shm/weights"):
        fleet.all("fill_the_disk")


@pytest.mark.parametrize("name", ERRORS)
def test_project_error_of_an_actor_keeps_class_and_message(fleet, name):
    with pytest.raises(ERRORS[name], match=r"^row 3 of data.jsonl has no prompt$") as caught:
        fleet.all("refuse", name)
    assert type(caught.value) is ERRORS[name]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"learners": {"ranks": 8, "threads": 1}},
            r"learners needs 8 x \{CPU: 1\}; the hosts.*CPU: 2\}",
        ),
        ({"learners": {"ranks": 1, "gpus": 1}}, r"learners needs \{GPU: 1, CPU: 1\} on one host; .*sections"),
    ],
)
def test_fleet_without_room_is_refused(session, tmp_path, settings, message):
    settings = {"name": "fleet", "stages": ["sft"], "cluster": {"patience_s": 0}, **settings}
    manager = FleetManager(RunConfig.model_validate(settings), tmp_path)
    with pytest.raises(FleetError, match=message):
        manager.learners()


def test_every_fleet_names_a_section_of_the_config():
    assert set(SECTIONS.values()) <= set(RunConfig.model_fields)


def test_stopped_process_is_hung_and_restarted_and_a_busy_one_is_not(make_fleet):
    fleet = make_fleet([0, 1], heartbeat_timeout_s=4)
    victim = fleet.all("pid")[1]
    at_work = fleet.submit(0, "sleep")
    os.kill(victim, signal.SIGSTOP)
    with pytest.raises(FleetError, match=r"worker-1 hangs in double \(no heartbeat for"):
        fleet.all("double", 1)
    assert fleet.dead_or_hung(patience_s=1) == [1]
    fleet.restart(1)
    assert fleet.dead_or_hung(patience_s=1) == []
    assert fleet.wait([fleet.submit(1, "double", 5)], "double") == [11]
    assert not ray.wait([at_work], timeout=0)[0]
    deadline = time.monotonic() + 20
    while psutil.pid_exists(victim) and psutil.Process(victim).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the stopped process is still there"
        time.sleep(0.1)


def test_heartbeats_go_on_after_a_failure_of_the_network(make_fleet):
    fleet = make_fleet([0], heartbeat_timeout_s=5)
    fleet.all("break_the_store", 2)
    time.sleep(8)
    fleet.watch([0], "double")
    assert fleet.dead_or_hung() == []


def test_actor_whose_connection_broke_is_replaced_and_lost_objects_are_no_death(fleet, monkeypatch):
    errors = [
        ActorUnavailableError("keepalive watchdog timeout", None),
        ObjectLostError("00", None, "call"),
        RayTaskError("double", "Traceback", ObjectLostError("00", None, "call")),
    ]
    refs = {fleet.submit(0, "double", 1): 0}
    with monkeypatch.context() as patch:
        patch.setattr(ray, "get", lambda ref: raise_(errors[0]))
        with pytest.raises(FleetError, match="worker-0 cannot be reached in double"):
            fleet.wait(refs, "double")
    assert fleet.dead_or_hung() == [0]
    fleet.restart(0)
    for error, message in zip(errors[1:], ("what worker-1 returned", "worker-1 lacks what it"), strict=True):
        ref = fleet.submit(1, "double", 1)
        with monkeypatch.context() as patch:
            patch.setattr(ray, "get", lambda ref, error=error: raise_(error))
            with pytest.raises(LostObjectError, match=message):
                fleet.wait({ref: 1}, "double")
    assert fleet.dead_or_hung() == []


def raise_(error):
    raise error


def test_actor_that_finds_no_place_is_not_waited_for_for_ever(session, tmp_path):
    limits = ClusterConfig(patience_s=4, heartbeat_timeout_s=4)
    fleet = Fleet("worker", WORKER, [{}], {"num_cpus": 99}, tmp_path, limits)
    with pytest.raises(
        FleetError, match=r"worker-0 hangs in double \(not started after . s, over cluster.pati"
    ):
        fleet.all("double", 1)
    fleet.stop()


def test_actor_that_exits_is_dead_and_one_that_failed_a_call_is_not(fleet):
    with pytest.raises(FleetError, match="worker-1 failed in fail_if"):
        fleet.wait({fleet.submit(1, "fail_if", 1): 1}, "fail_if")
    assert fleet.dead_or_hung() == []
    with pytest.raises(FleetError, match="worker-1 died during exit"):
        fleet.wait({fleet.submit(1, "exit"): 1}, "exit")
    assert fleet.dead_or_hung() == [1]


@pytest.mark.parametrize("name", [*ERRORS, "ZeroDivisionError"])
def test_constructor_that_raises_is_no_death_and_its_error_reaches_the_driver(make_fleet, tmp_path, name):
    fleet = make_fleet([{"error_name": name}])
    with pytest.raises(ERRORS.get(name, StartError)) as caught:
        fleet.all("double", 1)
    expected = "model/config.json:\nno layers"
    if name not in ERRORS:
        log = tmp_path / "worker-0.log"
        expected = f"worker-0 failed to start (ZeroDivisionError: model/config.json: no layers); see {log}"
    assert str(caught.value) == expected
    assert "Traceback" in (tmp_path / "worker-0.log").read_text()
    assert fleet.dead_or_hung() == []


def test_replacement_that_cannot_start_ends_the_run(make_fleet, tmp_path, monkeypatch):
    fleet = make_fleet([{"error_name": "ValueError", "marker": str(tmp_path / "marker")}], kind="rollout")
    manager = FleetManager(RunConfig.model_validate({"run_dir": str(tmp_path / "run")}), tmp_path)
    manager.adopt(fleet)
    victim = fleet.all("pid")[0]
    starts = []

    def stage(context):
        starts.append(1)
        if len(starts) == 1:
            os.kill(victim, signal.SIGKILL)
        fleet.all("double", 1)

    monkeypatch.setattr(StageSpec, "load", lambda spec: stage)
    context = Context(manager.config, RunDirectory(manager.config), manager)
    with pytest.raises(StartError, match=r"rollout-0 failed to start \(ZeroDivisionError: model/config.json"):
        run_with_recovery(context, "ppo")
    assert len(starts) == 2


def test_call_over_the_call_timeout_is_a_hang(make_fleet):
    fleet = make_fleet([0], call_timeout_s=4)
    message = r"worker-0 hangs in sleep \(in this call for . s, over cluster.call_timeout_s=4"
    with pytest.raises(FleetError, match=message):
        fleet.all("sleep")
    assert fleet.dead_or_hung(patience_s=1) == [0]


def test_started_actors_are_admitted_and_removed_ones_finish_their_calls(make_fleet):
    fleet = make_fleet([0])
    fleet.add({"number": 1})
    fleet.add({"nonsense": 1})
    assert fleet.expected_size == 3
    messages, deadline = [], time.monotonic() + 60
    while len(messages) < 2:
        assert time.monotonic() < deadline
        messages += fleet.admit_started()
        time.sleep(0.1)
    assert messages[0] == "worker-1 has joined"
    assert messages[1].startswith("worker-2 failed to start (TypeError: ")
    assert fleet.names == ["worker-0", "worker-1"]
    assert fleet.all("double", 5) == [10, 11]
    last = [fleet.submit(1, "double", i) for i in range(3)]
    fleet.remove(1)
    assert fleet.all("double", 5) == [10]
    assert ray.get(last) == [1, 3, 5]


def test_scale_request_is_applied_once_and_holds_until_the_next(make_fleet, tmp_path):
    manager = FleetManager(RunConfig.model_validate({"name": "fleet"}), tmp_path)
    fleet, scale = make_fleet([0], kind="rollout"), manager.paths.scale
    manager.adopt(fleet, lambda i: {"number": i} if i < 2 else {"nonsense": i})
    assert manager.apply_scale_requests() == []
    write_json(scale, {"rollout": 2})
    messages, deadline = manager.apply_scale_requests(), time.monotonic() + 300
    while "rollout-1 has joined" not in messages:
        assert time.monotonic() < deadline
        time.sleep(0.1)
        messages += manager.apply_scale_requests()
    assert messages == ["rollout fleet: from 1 to 2", "rollout-1 has joined"]
    write_json(scale, {"rollout": 3})
    messages = manager.apply_scale_requests()
    while len(messages) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
        messages += manager.apply_scale_requests()
    assert messages[1].startswith("rollout-2 failed to start")
    assert manager.apply_scale_requests() == []  # it is not tried again
    write_json(scale, {"rollout": 1})
    assert manager.apply_scale_requests() == ["rollout fleet: from 2 to 1"]
    assert fleet.all("double", 1) == [2]


def test_fleet_on_the_learners_gpus_keeps_its_size(make_fleet, tmp_path):
    config = RunConfig.model_validate({"name": "fleet", "cluster": {"layout": "colocated"}})
    manager, fleet = FleetManager(config, tmp_path), make_fleet([], kind="rollout")
    manager.adopt(fleet, lambda index: {"number": index})
    write_json(manager.paths.scale, {"rollout": 2})
    message = "rollout fleet: stays at 0; it is on the learners' GPUs, whose number does not change"
    assert manager.apply_scale_requests() == [f"{message} (cluster.layout)"]
    assert manager.apply_scale_requests() == []
    assert manager.scaling.target_size("rollout") == 0
