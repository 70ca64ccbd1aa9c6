"""Placement groups on a real Ray of two hosts with eight GPUs each, which do not exist: Ray only counts
them."""

import threading
import time
from collections import Counter

import pytest
import ray
from ray.cluster_utils import Cluster

from cluster.config_loader import load_config
from cluster.fleets import reservation
from cluster.fleets.fleet import Fleet
from cluster.fleets.lost_hosts import wait_for_hosts
from cluster.fleets.manager import FleetManager
from cluster.fleets.reservation import Reservations
from cluster.layout import Bundle, Group, Seat, device_of, groups
from common.errors import FleetError, UserError
from tests.cluster.hosted import WHERE

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def cluster():
    assert not ray.is_initialized()
    # Fractions of a core: what matters here are GPUs, and Ray starts a process for each core.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=16, num_gpus=8)
        ray.init(cluster.address, logging_level="ERROR")
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def make_manager(cluster, tmp_path):
    managers = []

    def make(*overrides):
        config = load_config(
            "configs/tiny.yaml", ["cluster.device=cuda", "cluster.patience_s=300", *overrides]
        )
        managers.append(FleetManager(config, tmp_path))
        return managers[-1]

    yield make
    for manager in managers:
        for fleet in manager._fleets.values():
            fleet.stop()
        manager._reservations.release_all()


def start(manager, kind, count):
    """A fleet of `count` actors where the manager would start its own."""
    manager.adopt(Fleet(kind, WHERE, [{}] * count, *manager._how_to_start(kind)))
    return manager._fleets[kind]


def wait_until_free(gpus):
    """Ray places and removes groups in the background, and counts what is free some time later."""
    deadline = time.monotonic() + 60
    while (free := ray.available_resources().get("GPU", 0)) != gpus:
        assert time.monotonic() < deadline, free
        time.sleep(0.1)


def devices(seen):
    """(node, GPU) of every GPU that these actors see."""
    return [(node, gpu) for node, visible, _ in seen for gpu in visible.split(",")]


def test_apart_every_gpu_has_one_actor_and_an_engine_is_on_one_host(make_manager):
    manager = make_manager("learners.ranks=3", "rollout={actors: 2, tensor_parallel: 6}")
    learners = start(manager, "learner", 3).all("see")
    engines = start(manager, "rollout", 2).all("see")
    assert [len(visible.split(",")) for _, visible, _ in engines] == [6, 6]
    assert engines[0][0] != engines[1][0]
    taken = devices([*learners, *engines])
    assert max(Counter(taken).values()) == 1
    assert len(taken) == 15
    # The scoring actor's GPU has been reserved with the others, so that no other run can take it.
    wait_until_free(0)
    # On cpu an actor sees none, also on a host that has some.
    on_cpu = make_manager("cluster.device=cpu", "learners.ranks=1")
    assert device_of(on_cpu.config, "learner") == "cpu"
    assert start(on_cpu, "learner", 1).all("see")[0][1] == ""


def test_colocated_actors_see_the_same_gpu_and_workers_that_of_their_learner(make_manager):
    manager = make_manager("cluster.layout=colocated", "learners.ranks=2", "rollout.actors=2")
    learners = start(manager, "learner", 2).all("see")
    assert [seen[:2] for seen in start(manager, "rollout", 2).all("see")] == [seen[:2] for seen in learners]
    assert start(manager, "scoring", 1).all("see")[0][:2] == learners[0][:2]
    for fleet in manager._fleets.values():
        fleet.stop()
    manager._reservations.release_all()

    manager = make_manager("cluster.layout=colocated", "learners.ranks=4", "rollout.tensor_parallel=4")
    learners = start(manager, "learner", 4).all("see")
    engine = start(manager, "rollout", 1)
    assert engine.all("see")[0][1:] == (None, "0,1,2,3")
    assert [seen[:2] for seen in engine.all("see_as_workers")[0]] == [seen[:2] for seen in learners]
    assert len(set(devices(learners))) == 4


def of_gpus(name, count, bundles=1):
    return Group(name, "PACK", (Bundle((Seat("rollout", 0),), gpus=count),) * bundles)


def test_what_no_host_has_is_explained(cluster):
    lines = []
    waiting = Reservations(patience_s=1.0, report=lines.append)
    with pytest.raises(FleetError) as error:
        waiting.reserve([of_gpus("rollout-0", 9)])
    message = str(error.value)
    assert "rollout-0 needs {GPU: 9} on one host; the hosts have: " in message
    assert "2 x" in message or message.count("{GPU: 8, CPU: 16}") >= 2
    assert "over cluster.patience_s" in message
    # In a Ray of the run's own nobody adds hosts: no wait.
    started = time.monotonic()
    with pytest.raises(UserError, match=r"rollout-0 needs \{GPU: 9\}"):
        Reservations(patience_s=60.0, is_own=True).reserve([of_gpus("rollout-0", 9)])
    assert time.monotonic() - started < 30
    with pytest.raises(UserError, match=r"no host nowhere in the cluster \(for a\); it has "):
        waiting.reserve([Group("a", "PACK", (Bundle((), gpus=1, host="nowhere"),))])
    # Another of the hosts that the layout gives takes its place.
    here, lines = ray.util.get_node_ip_address(), []
    other = Reservations(patience_s=60.0, report=lines.append)
    other.reserve([Group("a", "PACK", (Bundle((), gpus=1, host="nowhere", others=(here,)),))])
    assert lines == [f"a: host nowhere is not in the cluster, so on {here}"]
    other.release_all()
    wait_until_free(16)


def test_runs_that_do_not_fit_together_wait_one_after_the_other(cluster, monkeypatch):
    monkeypatch.setattr(reservation, "FIRST_LINE_S", 0.5)
    monkeypatch.setattr(reservation, "FIRST_TRY_S", 0.5)
    first, lines = Reservations(60.0), []
    first.reserve([of_gpus("learners", 1, bundles=10)])
    # Each has room for its learners but not for its engine, too.
    runs = [Reservations(300.0, report=lines.append) for _ in range(2)]
    wanted = [of_gpus("learners", 1, bundles=4), of_gpus("rollout-0", 8)]
    threads = [threading.Thread(target=run.reserve, args=(wanted,), daemon=True) for run in runs]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 300
    while not any("another run waits" in line for line in lines):
        assert time.monotonic() < deadline, lines
        time.sleep(0.1)
    # One of them holds what it has got so far; the other nothing.
    wait_until_free(2)
    first.release_all()
    while all(thread.is_alive() for thread in threads):
        assert time.monotonic() < deadline, lines
        time.sleep(0.1)
    done = next(run for run, thread in zip(runs, threads, strict=True) if not thread.is_alive())
    done.release_all()
    for thread in threads:
        thread.join(timeout=300)
        assert not thread.is_alive()
    for run in runs:
        run.release_all()
    assert any("waiting: rollout-0 needs {GPU: 8} on one host" in line for line in lines)


def test_groups_of_a_lost_host_move_to_one_that_joins(cluster, make_manager):
    extra = cluster.add_node(num_cpus=16, num_gpus=8)
    config = make_manager("learners.ranks=20", "stages=[sft]").config
    lines = []
    held = Reservations(2.0, report=lines.append)
    held.reserve(groups(config, ("learner",)))
    told = []
    wait_for_hosts([extra.node_id], 60, told.append)  # it answers
    cluster.remove_node(extra)
    wait_for_hosts([extra.node_id], 60, told.append)  # Ray has given it up
    assert not told
    with pytest.raises(FleetError, match=r"learners needs 20 x \{GPU: 1, CPU: 1\}; the hosts have"):
        held.restore()
    held.patience_s = 300.0
    cluster.add_node(num_cpus=16, num_gpus=8)
    held.restore()
    assert not held._pending(groups(config, ("learner",)))
    held.release_all()
