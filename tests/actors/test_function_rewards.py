"""Reward functions run in processes of their own: signals, hangs, crashes, and what they return."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from actors.function_rewards import FunctionTextReward
from actors.reward_config import FunctionReward
from actors.text_rewards import RewardResult
from common.errors import UserError
from common.plugins import child_environment
from tests.actors.reward_functions import results_of


@pytest.fixture
def reward():
    """Makes the reward of a function in `tests.actors.reward_functions`."""
    made = []

    def make(name, **settings):
        path = f"tests.actors.reward_functions:{name}"
        made.append(FunctionTextReward(FunctionReward(path=path, **settings)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_function_may_use_signals(reward):
    results = results_of(reward("with_alarm", retries=0), [{"seconds": 0}, {"seconds": 5}, {"seconds": 0}])
    assert [result.score for result in results[::2]] == [1, 1]
    assert results[1].failure.startswith("TimeoutError: too slow")


def test_a_coroutine_is_awaited(reward):
    assert results_of(reward("later"), [{}, {}]) == [RewardResult(4)] * 2


def test_failed_function_is_called_again_up_to_retries(reward):
    rows = [{"prompt": f"again {n}", "score": 1, "failures": n} for n in range(4)]
    results = results_of(reward("unreliable", retries=2), rows)
    assert results[:3] == [RewardResult(1)] * 3
    assert results[3].score != results[3].score  # nan
    assert results[3].failure.startswith("RuntimeError: not today (")
    assert "reward_functions.py, line " in results[3].failure


def test_numbers_of_all_kinds_are_taken_and_nothing_else(reward):
    kinds = ["int", "bool", "numpy", "numpy bool", "array of one", "decimal", "none"]
    results = results_of(reward("as_told"), [{"kind": kind} for kind in kinds])
    assert [result.score for result in results] == [2, 1, 0.5, 1, 3, 0.25, None]
    kinds = ["text", "list", "array of two", "infinite", "too large", "leave"]
    results = results_of(reward("as_told"), [{"kind": kind} for kind in kinds])
    reasons = [result.failure for result in results]
    assert "the reward is '1.0' (str); expected a number or None" in reasons[0]
    assert "the reward is [1.0] (list)" in reasons[1]
    assert reasons[2].startswith("TypeError")
    assert "not finite (inf)" in reasons[3]
    assert "not finite (1e+39)" in reasons[4]
    assert "SystemExit: enough" in reasons[5]


def test_a_call_that_hangs_or_crashes_fails_alone(reward):
    rows = [{"kind": kind} for kind in ["int", "hang", "int", "crash", "int"]]
    started = time.monotonic()
    results = results_of(reward("as_told", timeout_s=0.5), rows)
    assert time.monotonic() - started < 20
    assert [result.score for result in results[::2]] == [2, 2, 2]
    assert results[1].failure == "no answer within timeout_s=0.5"
    assert results[3].failure == "its process ended (exit code -11)"


def test_a_function_that_always_hangs_costs_a_few_time_limits(reward):
    started = time.monotonic()
    results = results_of(reward("as_told", timeout_s=0.3), [{"kind": "hang"}] * 120)
    assert time.monotonic() - started < 20
    assert all(result.failure for result in results)
    assert results[-1].failure.startswith("not called: 3 calls of this batch")
    assert "no answer within timeout_s=0.3" in results[-1].failure


def test_workers_are_processes(reward):
    results = results_of(reward("process", workers=3), [{}] * 60)
    assert len({result.score for result in results}) == 3


def test_a_batch_of_cheap_calls_costs_few_microseconds_each(reward):
    cheap = reward("cheap")
    started = time.monotonic()
    results = results_of(cheap, [{"prompt": "x" * 200, "n": n} for n in range(5000)])
    print(f"{5000 / (time.monotonic() - started):,.0f} calls/s")
    assert all(result.score == 4 for result in results)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere_at_all:score", "there is no module nowhere_at_all"),
        ("tests.actors.reward_functions:absent", "has no attribute 'absent'"),
        ("tests.actors.reward_functions:VALUES", "is dict; expected a function"),
        ("tests.actors.reward_functions:results_of", "expected a function (row, response, ended)"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused(path, message):
    with pytest.raises(UserError) as error:
        FunctionTextReward(FunctionReward(path=path))
    assert message in str(error.value)


def test_processes_end_with_the_one_that_started_them():
    """Also one whose function hangs: nothing but the kernel can tell it."""
    program = """
import os, time
from actors.reward_config import FunctionReward
from actors.function_rewards import FunctionTextReward
from actors.text_rewards import RewardRequest
reward = FunctionTextReward(FunctionReward(path="tests.actors.reward_functions:as_told"))
reward.submit([RewardRequest({"kind": "hang"}, "", True)])
time.sleep(1)
os.kill(os.getpid(), 9)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, **child_environment()})
    deadline, children = time.monotonic() + 30, []
    while not children and time.monotonic() < deadline:
        children = psutil.Process(parent.pid).children()
        time.sleep(0.05)
    assert parent.wait(60) == -9
    _, alive = psutil.wait_procs(children, timeout=5)
    assert len(children) == 1
    assert not alive
