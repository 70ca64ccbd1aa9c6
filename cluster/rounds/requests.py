"""What an owner decides about a round, for `hero rounds close|hold|promote|resume`.

A decision is a file in the round's directory, or a new state, so that it holds whether or not `hero rounds`
runs at that moment.
"""

from __future__ import annotations

import getpass
import time
from pathlib import Path

from cluster.rounds.judgement import serve_round
from cluster.rounds.state import RoundState, log, newest
from common.errors import UserError
from common.files import try_lock, write_json
from common.run_paths import RunPaths
from common.stop_request import stop_request, withdraw_stop

WORKING = "`hero rounds` is at work in this directory; stop it first, or wait until the round is finished"


def close_round(root: Path, why: str) -> str:
    """Ends the waiting for labels of the newest round. Raises UserError if it waits for none."""
    state = newest(RunPaths(root))
    waited = {"labeling": "labelling", "trained": "comparisons"}.get(state.state or "")
    if waited is None:
        raise UserError(f"{root}: round {state.number} is {state.state}, so no labels are waited for")
    _write(state, state.paths.close_request(state.state or ""), "close", why)
    note = ""
    if waited == "comparisons":
        note = "; with fewer comparisons than planned the gate holds the policy"
    return f"round {state.number}: the {waited} end with what is there{note}"


def hold_round(root: Path, why: str) -> str:
    """Raises UserError if the newest round is finished."""
    state = newest(RunPaths(root))
    if state.is_final:
        raise UserError(
            f"{root}: round {state.number} is {state.state} already; `hero rollback {root}` serves the "
            "version before"
        )
    _write(state, state.paths.hold_request, "hold", why)
    return f"round {state.number}: its policy will be held"


def promote_round(root: Path, why: str) -> str:
    """Raises UserError if the newest round was not held, or the canary refuses its policy."""
    run = RunPaths(root)
    with try_lock(run.rounds_lock, f"{root}: {WORKING}"):
        state = newest(run)
        if state.state != "held":
            raise UserError(
                f"{root}: round {state.number} is {state.state}; only a policy that was held is promoted by "
                "hand"
            )
        who = getpass.getuser()
        outcome, figures = serve_round(
            state, f"by hand, {who}: {why}; held before: {state.values['decision']}"
        )
        if outcome != "promoted":
            raise UserError(f"{root}: round {state.number}: {figures['decision']}")
        log(run, f"{state.number}:by hand:{time.time()}", round=state.number, state="promoted", why=why)
        state.advance("promoted", {}, figures)
    return f"round {state.number}: {figures['decision']}"


def resume_rounds(root: Path) -> str:
    """Raises UserError if nobody has stopped them."""
    run = RunPaths(root)
    request = stop_request(run)
    if request is None:
        raise UserError(f"{root}: nobody has asked to stop")
    log(run, f"resumed:{time.time()}", state="resumed", stopped=request)
    withdraw_stop(run)
    return f"{root}: may go on; `hero rounds CONFIG` continues (it was stopped by {request['who']})"


def _write(state: RoundState, path: Path, what: str, why: str) -> None:
    request = {"who": getpass.getuser(), "why": why, "time": time.time()}
    write_json(path, request)
    log(state.run, f"{state.number}:{what}:{request['time']}", round=state.number, state=what, why=why)
