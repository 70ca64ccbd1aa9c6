"""FleetManager of real Ray actors: what the driver learns when one of them fails, and what is refused before it would hang."""

import os
import signal
import time

import psutil
import pytest
import ray

from cluster.config import ClusterConfig, RunConfig
from cluster.fleets.fleet import Fleet
from cluster.fleets.manager import FleetManager
from common.errors import FleetError, UserError
from common.files import write_json
from common.ray_session import start_ray


class Worker:
    """Hosted by the actors of this test."""

    def __init__(self, number=0):
        self.number = number

    def pid(self):
        return os.getpid()

    def double(self, value):
        return 2 * value + self.number

    def refuse(self):
        raise UserError("row 3 of data.jsonl has no prompt")

    def fail_if(self, number):
        if number == self.number:
            raise ZeroDivisionError("no tokens")
        time.sleep(60)

    def sleep(self):
        time.sleep(60)

    def give_up(self):
        raise SystemExit("half of the weights are new")


@pytest.fixture(scope="module")
def session():
    start_ray(cpus=2)
    yield
    ray.shutdown()


@pytest.fixture
def fleet(session, tmp_path):
    made = Fleet(
        "worker",
        "tests.cluster.test_fleet:Worker",
        [{"number": i} for i in (0, 1)],
        {"num_cpus": 0},
        tmp_path,
    )
    yield made
    made.stop()


def test_results_come_in_the_order_of_the_actors_and_objects_arrive_as_values(fleet):
    assert fleet.all("double", 5) == [10, 11]
    assert fleet.all("double", ray.put(7)) == [14, 15]
    assert min(fleet.busy()) >= 0


def test_a_dead_actor_is_named_with_its_log_although_the_other_would_go_on(fleet, tmp_path):
    victim = fleet.all("pid")[1]
    refs = [fleet.submit(i, "sleep") for i in range(2)]
    time.sleep(0.5)
    os.kill(victim, signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(FleetError, match="worker-1 died during generation") as caught:
        fleet.get(refs, "generation")
    assert str(tmp_path / "worker-1.log") in str(caught.value)
    assert time.monotonic() - started < 30


def test_a_failure_names_actor_cause_and_log_and_the_log_has_the_traceback(fleet, tmp_path):
    with pytest.raises(FleetError, match=r"worker-0 failed in fail_if \(ZeroDivisionError: no tokens\)"):
        fleet.all("fail_if", 0)
    text = (tmp_path / "worker-0.log").read_text()
    assert "Traceback" in text
    assert "no tokens" in text


def test_what_the_user_did_wrong_arrives_as_it_was_said(fleet):
    with pytest.raises(UserError, match=r"^row 3 of data.jsonl has no prompt$"):
        fleet.all("refuse")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learners": {"ranks": 8, "threads": 1}}, "the learner fleet needs 8 CPU"),
        ({"learners": {"ranks": 1, "gpus": 1}}, "the learner fleet needs 1 GPU"),
    ],
)
def test_a_fleet_that_would_wait_for_ever_is_refused(session, tmp_path, settings, message):
    fleets = FleetManager(RunConfig.model_validate({"name": "fleet", **settings}), tmp_path)
    with pytest.raises(UserError, match=message):
        fleets.learners()
    fleets.transport.close()


def test_an_actor_whose_process_stops_is_told_from_one_that_works_and_is_replaced(session, tmp_path):
    limits = ClusterConfig(heartbeat_timeout_s=4)
    made = Fleet(
        "worker",
        "tests.cluster.test_fleet:Worker",
        [{"number": i} for i in (0, 1)],
        {"num_cpus": 0},
        tmp_path,
        limits,
    )
    try:
        victim = made.all("pid")[1]
        at_work = made.submit(0, "sleep")
        os.kill(victim, signal.SIGSTOP)
        with pytest.raises(FleetError, match=r"worker-1 hangs in double \(no heartbeat for"):
            made.all("double", 1)
        assert made.lost(patience=1) == [1]
        made.replace(1)
        assert made.lost(patience=1) == []
        assert made.get([made.submit(1, "double", 5)], "double") == [11]
        assert not ray.wait([at_work], timeout=0)[0]
        deadline = time.monotonic() + 20
        while psutil.pid_exists(victim) and psutil.Process(victim).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "the stopped process is still there"
            time.sleep(0.1)
    finally:
        made.stop()


def test_an_actor_that_gives_up_is_lost_and_one_that_only_failed_is_not(fleet):
    with pytest.raises(FleetError, match="worker-1 failed in fail_if"):
        fleet.get({fleet.submit(1, "fail_if", 1): 1}, "fail_if")
    assert fleet.lost() == []
    with pytest.raises(FleetError, match="worker-1 died during give_up"):
        fleet.get({fleet.submit(1, "give_up"): 1}, "give_up")
    assert fleet.lost() == [1]


def test_a_call_that_takes_too_long_is_a_stall(session, tmp_path):
    limits = ClusterConfig(call_timeout_s=4)
    made = Fleet("worker", "tests.cluster.test_fleet:Worker", [{}], {"num_cpus": 0}, tmp_path, limits)
    try:
        with pytest.raises(
            FleetError, match=r"worker-0 hangs in sleep \(at work for . s, over cluster.call_timeout_s=4"
        ):
            made.all("sleep")
        assert made.lost(patience=1) == [0]
    finally:
        made.stop()


def test_a_fleet_grows_by_actors_that_have_started_and_those_that_leave_finish_their_work(session, tmp_path):
    made = Fleet("worker", "tests.cluster.test_fleet:Worker", [{"number": 0}], {"num_cpus": 0}, tmp_path)
    try:
        made.grow({"number": 1})
        made.grow({"nonsense": 1})
        assert made.expected == 3
        told, deadline = [], time.monotonic() + 60
        while len(told) < 2:
            assert time.monotonic() < deadline
            told += made.settle()
            time.sleep(0.1)
        assert told[0] == "worker-1 has joined"
        assert told[1].startswith("worker-2 failed to start")
        assert made.names == ["worker-0", "worker-1"]
        assert made.all("double", 5) == [10, 11]
        last = [made.submit(1, "double", i) for i in range(3)]
        made.shrink(1)
        assert made.all("double", 5) == [10]
        assert ray.get(last) == [1, 3, 5]
    finally:
        made.stop()


def test_wishes_for_a_fleet_hold_until_the_run_ends(session, tmp_path):
    fleets = FleetManager(RunConfig.model_validate({"name": "fleet"}), tmp_path)
    fleets._makers["rollout"] = lambda i: {"number": i} if i < 2 else {"nonsense": i}
    fleets._fleets["rollout"] = Fleet(
        "rollout", "tests.cluster.test_fleet:Worker", [{"number": 0}], {"num_cpus": 0}, tmp_path
    )
    try:
        assert fleets.resize() == []
        write_json(tmp_path / "scale.json", {"rollout": 2})
        told, deadline = fleets.resize(), time.monotonic() + 60
        while "rollout-1 has joined" not in told:
            assert time.monotonic() < deadline
            told += fleets.resize()
        assert told == ["rollout fleet: from 1 to 2", "rollout-1 has joined"]
        write_json(tmp_path / "scale.json", {"rollout": 3})
        told = fleets.resize()
        while len(told) < 2:
            assert time.monotonic() < deadline
            told += fleets.resize()
        assert told[1].startswith("rollout-2 failed to start")
        assert fleets.resize() == []  # it is not tried for ever
        write_json(tmp_path / "scale.json", {"rollout": 1})
        assert fleets.resize() == ["rollout fleet: from 2 to 1"]
        assert fleets._fleets["rollout"].all("double", 1) == [2]
    finally:
        fleets._fleets.pop("rollout").stop()
        fleets.transport.close()
