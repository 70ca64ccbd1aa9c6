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
import inspect
import math
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from actors.child_process import MAX_REASON_CHARACTERS, begin_child
from common.errors import UserError
from common.plugins import describe_error, load_function

LARGEST = 3.4028234663852886e38
"""Scores travel as float32, where a larger number becomes infinite."""


def main() -> None:
    connection, path, retries = begin_child(), sys.argv[2], int(sys.argv[3])
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
