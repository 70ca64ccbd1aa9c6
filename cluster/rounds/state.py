"""The state of a round: RUN/rounds/NNN/round.json, replaced as a whole after each transition, and the log of
all rounds, RUN/rounds/rounds.jsonl.

    planned ─► sampled ─► labeling ─► closed ─► rewarded ─► trained ─► judged ─► promoted | held

A state says that everything before it is complete on disk. round.json has no times, so the same inputs give
the same bytes, whatever was interrupted; times are in the log.
"""

from __future__ import annotations

import getpass
import hashlib
import time
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import append_row, read_json, write_json
from common.run_paths import RoundPaths, RunPaths

STATES = ("planned", "sampled", "labeling", "closed", "rewarded", "trained", "judged", "promoted", "held")
FINAL = ("promoted", "held")


class RoundState:
    """The state of one round, as its file has it."""

    def __init__(self, run: RunPaths, number: int) -> None:
        self.run, self.number, self.paths = run, number, run.round(number)
        self.values: dict[str, Any] = read_json(self.paths.state) or {"round": number, "state": None}

    @property
    def state(self) -> str | None:
        return self.values["state"]  # type: ignore[no-any-return]

    @property
    def is_final(self) -> bool:
        return self.state in FINAL

    def reached(self, state: str) -> bool:
        return self.state is not None and STATES.index(self.state) >= STATES.index(state)

    def advance(self, state: str, inputs: dict[str, str], figures: dict[str, Any]) -> None:
        """Records that a transition is complete. `inputs`: what it was made from, by name."""
        self.values.setdefault("inputs", {}).update(inputs)
        self.values.update(figures)
        self.values["state"] = state
        # The log first: a crash between the two adds the line again, and `once` leaves it out.
        log(self.run, f"{self.number}:{state}", state=state, round=self.number)
        write_json(self.paths.state, self.values)

    def check(self, name: str, digest: str) -> None:
        """Raises UserError if an input of an earlier transition is not what it was."""
        before = self.values.get("inputs", {}).get(name)
        if before is not None and before != digest:
            raise UserError(
                f"{self.paths.root}: {name} has changed since the round was {self.state} ({before} then, "
                f"{digest} now); put it back, as later steps were made from it"
            )


def log(run: RunPaths, key: str, **event: Any) -> None:
    """Adds a line to the log of all rounds, unless one with the same key is there."""
    row = {"key": key, "time": time.time(), "who": getpass.getuser(), **event}
    append_row(run.rounds_log, row, once="key")


def file_digest(path: Path) -> str:
    """SHA-256 of a file, its first 16 digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def newest(run: RunPaths) -> RoundState:
    """The last round that was started. Raises UserError if there is none."""
    rounds = run.started_rounds()
    if not rounds:
        raise UserError(f"{run.root}: no round was started here; `hero rounds run CONFIG` starts one")
    return RoundState(run, int(rounds[-1].root.name))


def policy_of(run: RunPaths, number: int, first: Path) -> tuple[str, Path]:
    """(name, model folder) of the policy of a round; that of round 0 is `first`, the SFT policy."""
    if number < 1:
        return "sft-0", first
    return f"round-{number}", RoundPaths(run.round(number).root).stage("ppo").model
