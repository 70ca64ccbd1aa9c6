"""Reward functions as users write them, for tests of what calls them."""

import asyncio
import os
import signal
import sys
import time
from decimal import Decimal

import numpy as np


def results_of(reward, rows):
    """The results of a text reward for one response to each row."""
    from actors.text_rewards import RewardRequest

    futures = reward.submit([RewardRequest(row, "text", True) for row in rows])
    return [result for future in futures for result in future.result()]


def unreliable(row, response, ended):
    """Fails as often as the row says, then returns the row's score."""
    row["calls"] = row.get("calls", 0) + 1
    if row["calls"] <= row["failures"]:
        raise RuntimeError("not today")
    return row["score"]


def with_alarm(row, response, ended):
    """Limits its time by SIGALRM, as math-verify does."""

    def too_late(*_):
        raise TimeoutError("too slow")

    before = signal.signal(signal.SIGALRM, too_late)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        time.sleep(row["seconds"])
        return 1.0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


async def later(row, response, ended):
    await asyncio.sleep(0.01)
    return len(response)


def as_told(row, response, ended):
    """Does what the row says: hangs, crashes, leaves, returns some kind of number."""
    kind = row["kind"]
    if kind == "hang":
        time.sleep(1000)
    if kind == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "leave":
        sys.exit("enough")
    return VALUES[kind]


VALUES = {
    "int": 2,
    "bool": True,
    "numpy": np.float32(0.5),
    "numpy bool": np.bool_(True),
    "array of one": np.array(3.0),
    "decimal": Decimal("0.25"),
    "none": None,
    "text": "1.0",
    "list": [1.0],
    "array of two": np.array([1.0, 2.0]),
    "infinite": float("inf"),
    "too large": 1e39,
}


def process(row, response, ended):
    """Which process calls it."""
    time.sleep(0.01)
    return os.getpid()


def cheap(row, response, ended):
    return len(response)


def length_or_none(row, response, ended):
    return None if row["skip_length"] else float(len(response))


def bonus(row, response, ended):
    return row["bonus"]
