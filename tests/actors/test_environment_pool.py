"""Environments in real worker processes: what each kind of failure costs."""

import os
import signal
import time

import psutil
import pytest

from actors.environments.config import EnvironmentConfig
from actors.environments.messages import StepResult
from actors.environments.pool import EnvironmentPool, StepFailure
from common.errors import UserError

MODULE = "tests.actors.environments"


def make_pool(name="Countdown", **keys):
    settings = {"name": f"{MODULE}:{name}", "workers": 2, "threads": 4, "step_timeout_s": 20} | keys
    pool = EnvironmentPool(EnvironmentConfig(**settings))
    pool.wait_ready()
    return pool


@pytest.fixture(scope="module")
def shared():
    pool = make_pool()
    yield pool
    pool.close()


def run_all(pool, rows, actions=("ab", "cde", "f"), seconds=60):
    """Plays one episode for each row; its outcomes by its number."""
    outcomes = {number: [] for number in range(len(rows))}
    for number, row in enumerate(rows):
        pool.reset(number, 100 + number, row)
    deadline = time.monotonic() + seconds
    while pool.num_busy:
        assert time.monotonic() < deadline, outcomes
        for number, outcome in pool.poll(1.0):
            outcomes[number].append(outcome)
            if isinstance(outcome, StepFailure) or outcome.terminated:
                pool.forget(number)
            else:
                pool.step(number, actions[len(outcomes[number]) - 1])
    return outcomes


GOOD = [
    StepResult("2 characters, 2 left", 1.0, info={"left": 2.0}),
    StepResult("3 characters, 1 left", 1.0, info={"left": 1.0}),
    StepResult("1 characters, 0 left", 1.0, terminated=True, info={"left": 0.0}),
]


def good(number):
    return [StepResult(f"seed {100 + number}, 3 left"), *GOOD]


def test_episodes_run_beside_each_other(shared):
    outcomes = run_all(shared, [{}] * 20)
    assert outcomes == {number: good(number) for number in range(20)}


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("raise in step", "RuntimeError: the room has no door"),
        ("raise in reset", "RuntimeError: the room has no door"),
        ("leave in step", "SystemExit: 3"),
        ("no tuple", "step gave 'nonsense'; expected (observation, reward"),
        ("reward nan", "step gave the reward nan; expected a finite number"),
        ("observation number", "step gave the observation 17; expected a text or messages"),
    ],
)
def test_a_faulty_step_costs_its_own_episode(shared, fault, expected):
    replaced = shared.replaced
    outcomes = run_all(shared, [{}, {"fault": fault}, {}])
    assert outcomes[0] == good(0)
    assert outcomes[2] == good(2)
    failure = outcomes[1][-1]
    assert failure.kind == "failed"
    assert expected in failure.reason
    assert shared.replaced == replaced


@pytest.mark.parametrize("where", ["reset", "step"])
def test_an_environment_that_kills_its_process_costs_its_own_episode(where):
    pool = make_pool(workers=1, threads=2)
    outcomes = run_all(pool, [{}, {}, {"fault": f"die in {where}"}, {}])
    assert [outcomes[number] for number in (0, 1, 3)] == [good(0), good(1), good(3)]
    assert outcomes[2][-1] == StepFailure("failed", "its process ended (exit code 7)")
    assert pool.replaced >= 1
    pool.close()


def test_a_killed_worker_costs_no_episode():
    pool = make_pool(kwargs={"step_s": 0.3}, threads=2)
    for number in range(8):
        pool.reset(number, 100 + number, {})
    outcomes = {number: [] for number in range(8)}
    killed = False
    while pool.num_busy:
        for number, outcome in pool.poll(1.0):
            outcomes[number].append(outcome)
            if outcome.terminated:
                pool.forget(number)
                continue
            pool.step(number, ["ab", "cde", "f"][len(outcomes[number]) - 1])
            if len(outcomes[number]) == 2 and not killed:
                os.kill(pool.pids[0], signal.SIGKILL)
                killed = True
    assert outcomes == {number: good(number) for number in range(8)}
    pool.close()


def test_a_step_that_hangs_costs_its_own_episode():
    pool = make_pool(step_timeout_s=1.5, workers=1)
    outcomes = run_all(pool, [{}, {"fault": "hang in step"}, {}, {"fault": "hang in reset"}])
    assert outcomes[0] == good(0)
    assert outcomes[2] == good(2)
    assert outcomes[1][-1] == StepFailure("timed_out", "step took longer than environment.step_timeout_s=1.5")
    assert outcomes[3] == [StepFailure("timed_out", "reset took longer than environment.step_timeout_s=1.5")]
    pool.close()


def test_an_environment_that_does_not_repeat_itself_loses_its_episode():
    pool = make_pool("Forgetful", workers=1, threads=1)
    pool.reset(0, 5, {})
    pool.poll(10)
    pool.step(0, "a")
    assert isinstance(pool.poll(10)[0][1], StepResult)
    os.kill(pool.pids[0], signal.SIGKILL)
    psutil.wait_procs([psutil.Process(pool.pids[0])], timeout=5)
    pool.step(0, "b")
    ((_, failure),) = pool.poll(30)
    assert failure.kind == "failed"
    assert "must depend on its seed alone" in failure.reason
    pool.close()


def test_workers_end_with_the_pool(shared):
    pool = make_pool()
    processes = [psutil.Process(pid) for pid in pool.pids]
    pool.close()
    assert not any(process.is_running() for process in processes)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no.such:Thing", "environment.name=no.such:Thing: cannot be loaded: there is no module no"),
        (f"{MODULE}:Missing", "the module has no Missing and registers no environment of that name"),
        (f"{MODULE}:broken", "it cannot be made: RuntimeError: no licence"),
        (f"{MODULE}:not_an_environment", "made int, which has no reset and step"),
        ("NoSuchWorld-v0", "neither Ray's registry nor Gymnasium's has it"),
    ],
)
def test_an_environment_that_cannot_be_loaded_is_the_users_error(name, message):
    pool = EnvironmentPool(EnvironmentConfig(name=name, workers=1))
    with pytest.raises(UserError) as error:
        pool.wait_ready()
    assert message in str(error.value)
    pool.close()


@pytest.mark.parametrize("name", ["countdown-of-rllib", "CountdownOfGymnasium-v0"])
def test_a_module_may_register_its_environments(name):
    config = EnvironmentConfig(name=f"tests.actors.registering:{name}", kwargs={"turns": 1}, workers=1)
    pool = EnvironmentPool(config)
    pool.wait_ready()
    pool.reset(0, 7, {})
    assert pool.poll(10) == [(0, StepResult("seed 7, 1 left"))]
    pool.close()


def test_actions_are_messages_if_the_environment_says_so(shared):
    pool = make_pool("Echo", workers=1)
    assert pool.takes_messages
    assert not shared.takes_messages
    pool.close()
