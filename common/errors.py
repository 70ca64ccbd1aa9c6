"""Errors that the command line prints as one message without a traceback, each with the exit code of the process.

1  FleetError       an actor failed, died or hangs                          a job is retried
2  UserError        wrong config key, file, row or command                  not retried: the same input fails again
3  RunStoppedError  a rule of the config stopped the run (alarms.stop,      not retried: the rule asked for it
                    rewards.quarantine_share)
4  DiskFullError    a write failed because the disk is full                 a job is retried
5  WeightSyncError  engines and learners hold different weights             a job is retried
"""

import errno


class HeroError(Exception):
    """Base of the errors above. The message says what is wrong and where, what was expected, and what to do."""

    exit_code = 1


class UserError(HeroError):
    """The input is wrong and the user can correct it; names file, key or row."""

    exit_code = 2


class RunStoppedError(HeroError):
    """The run stopped itself by a rule of its config; names the rule and the evidence."""

    exit_code = 3


class DiskFullError(HeroError):
    """A file could not be written for want of room; names the file and the room that is left."""

    exit_code = 4


class WeightSyncError(HeroError):
    """After a weight sync the engines' log-probabilities differ from the learner's by more than the bound."""

    exit_code = 5


class FleetError(HeroError, RuntimeError):
    """An actor failed, died or hangs; names it, the call and its log."""

    exit_code = 1


def is_disk_full(error: BaseException) -> bool:
    """Whether a write failed because the disk, or the user's quota on it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
