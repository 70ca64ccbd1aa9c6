"""The process in which a reward function of the user's runs: `python -m actors.reward_worker FD PATH
RETRIES`, started by `actors.function_rewards`.

A process of its own, so that a function may use signals (math-verify limits its time by SIGALRM, which
works in a main thread alone), and may hang, crash or leave without harm to the models beside it.
Imports neither torch nor Ray, so that another one starts in a tenth of a second.

    in   a list of calls, each (row, response, ended)
    out  first ("ready", None) or ("unusable", reason);
         for each attempt of each call ("score", number or None) or ("failed", reason) or, if further
         attempts follow, ("retry", reason)
"""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import math
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from common.errors import UserError
from common.plugins import describe_error, load_function

LARGEST = 3.4028234663852886e38
"""Scores travel as float32, where a larger number becomes infinite."""
MAX_REASON_CHARACTERS = 300
PR_SET_PDEATHSIG = 1
"""See prctl(2)."""


def main() -> None:
    connection, path, retries = Connection(int(sys.argv[1])), sys.argv[2], int(sys.argv[3])
    _end_with_parent()
    # A function that starts `python program.py` wants the folder of the program on its import path.
    os.environ.pop("PYTHONSAFEPATH", None)
    # Ctrl-C goes to every process of a terminal; the driver decides what follows.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        function = load_function(path, "reward", "row", "response", "ended")
    except UserError as error:
        connection.send(("unusable", str(error)))
        return
    connection.send(("ready", None))
    with asyncio.Runner() as runner:
        while True:
            try:
                calls = connection.recv()
            except EOFError:  # the scoring actor has ended
                return
            for call in calls:
                _attempt_all(connection, function, call, retries, runner)


def _end_with_parent() -> None:
    """Has the kernel kill this process when its parent dies: a function that hangs would not notice."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _attempt_all(
    connection: Connection,
    function: Callable[..., Any],
    call: tuple[dict[str, Any], str, bool],
    retries: int,
    runner: asyncio.Runner,
) -> None:
    for attempt in range(retries + 1):
        try:
            value = function(*call)
            if inspect.isawaitable(value):
                value = runner.run(_awaited(value))
            connection.send(("score", as_score(value)))
            return
        except BaseException as error:  # the user's code may raise anything, SystemExit too
            reason = describe_error(error)[:MAX_REASON_CHARACTERS]
            kind = "failed" if attempt == retries else "retry"
            connection.send((kind, reason))


async def _awaited(value: Any) -> Any:
    return await value


def as_score(value: Any) -> float | None:
    """What a reward returned, as a number: true is 1, and numbers of numpy and torch are numbers. None:
    the reward does not apply to this response. Raises TypeError and ValueError for anything else."""
    if value is None:
        return None
    # Not float(value) alone: that would take texts too.
    if not hasattr(type(value), "__float__"):
        raise TypeError(f"the reward is {value!r} ({type(value).__name__}); expected a number or None")
    score = float(value)
    if not math.isfinite(score) or abs(score) > LARGEST:
        raise ValueError(f"not finite ({score})")
    return score


if __name__ == "__main__":
    main()
