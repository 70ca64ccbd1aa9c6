"""What Ray reports of a failed call, as the errors of this project."""

from __future__ import annotations

from pathlib import Path

from ray.exceptions import ActorUnavailableError, ObjectLostError, RayActorError, RayError, RayTaskError

from common.errors import DiskFullError, FleetError, HeroError, StartError, is_disk_full, one_line


class LostObjectError(FleetError):
    """What a call returned, or needed, was on a host that is lost or cut off. Its actors may all be alive:
    the network may have come back. The next attempt makes it again."""


def failure(error: RayError, name: str, doing: str, log: Path) -> HeroError:
    """The error to raise for a call `doing` of the actor `name`.

    An error of the project keeps its class, which decides the exit code of the process, and its message,
    which is complete. Any other is a FleetError that names the actor, the call and the log.
    """
    # The method raised, and the actor lives.
    if isinstance(error, RayTaskError):
        cause = error.cause
        if isinstance(cause, ObjectLostError):
            return LostObjectError(
                f"{name} lacks what it needs for {doing} ({_first_line(cause)}); see {log}"
            )
        if isinstance(cause, HeroError):
            return type(cause)(str(cause))
        if is_disk_full(cause):
            return DiskFullError(
                f"{name} cannot write in {doing} ({cause}); free some space and run the same command, which "
                "continues from the last checkpoint"
            )
        what = f"{type(cause).__name__}: {one_line(cause)}"
        return FleetError(f"{name} failed in {doing} ({what}); see {log}")
    # The host itself could not be made: its module or its arguments cannot be loaded there.
    if isinstance(error, RayActorError) and error.actor_init_failed:
        return StartError(f"{name} failed to start ({one_line(error)})")
    if isinstance(error, ObjectLostError):
        return LostObjectError(f"what {name} returned in {doing} is lost ({_first_line(error)}); see {log}")
    if isinstance(error, ActorUnavailableError):
        return FleetError(f"{name} cannot be reached in {doing} ({_first_line(error)}); see {log}")
    return FleetError(f"{name} died during {doing} ({_first_line(error)}); see {log}")


def _first_line(error: RayError) -> str:
    """Ray's further lines are ids."""
    for line in str(error).splitlines():
        if line.strip():
            return line.strip()
    return "no message"
