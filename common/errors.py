"""Errors that the command line prints as one message, each with the exit code of the process.

code  error            when                                                retried by `hero run --retries`
1     FleetError       an actor failed, died or hangs; Ray did not start   yes
2     UserError        wrong config key, file, row or command              no: the same input fails again
3     RunStoppedError  a rule of the config stopped the run (alarms.stop,  no: the rule asked for it
                       rewards.quarantine_share)
4     DiskFullError    a write failed because the disk is full             yes
5     WeightSyncError  engines and learners hold different weights         yes
130   (Ctrl-C, SIGTERM)                                                    no: somebody stopped it
"""

import errno


class HeroError(Exception):
    """Base of the errors above. The message says what is wrong and where, what was expected, and
    what to do."""

    exit_code = 1


class UserError(HeroError):
    """The input is wrong and the user can correct it; names file, key or row."""

    exit_code = 2


class RunStoppedError(HeroError):
    """The run stopped itself by a rule of its config; names the rule and the evidence."""

    exit_code = 3


class DiskFullError(HeroError):
    """A file could not be written because the disk is full; names the file and the free space."""

    exit_code = 4


class WeightSyncError(HeroError):
    """After a weight sync the engines' log-probabilities differ from the learner's by more than the
    bound."""

    exit_code = 5


class FleetError(HeroError, RuntimeError):
    """An actor failed, died or hangs; names it, the call and its log. Or Ray did not start."""

    exit_code = 1


class StartError(FleetError):
    """An actor's constructor raised an error, which another start would only raise again."""


# Exit code after Ctrl-C or SIGTERM, as shells use it.
INTERRUPTED = 130
# Exit codes after which `hero run --retries` starts the run again. 1 is also an unexpected
# exception.
RETRIED = (FleetError.exit_code, DiskFullError.exit_code, WeightSyncError.exit_code)


def is_disk_full(error: BaseException) -> bool:
    """Whether a write failed because the disk, or the user's quota on it, is full."""
    # EDQUOT: on shared file systems the user's quota ends before the disk does.
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def is_device_failure(error: BaseException | None) -> bool:
    """Whether an error of a GPU or of the network between GPUs leaves the process unusable: every further
    call would fail as well. Not a lack of memory, which another start would only meet again."""
    while error is not None:
        kind, text = type(error).__name__, str(error)
        if "OutOfMemory" in kind or "out of memory" in text:
            return False
        # torch.AcceleratorError, torch.distributed.DistBackendError, and vLLM's own calls of NCCL.
        if kind in ("AcceleratorError", "DistBackendError") or "CUDA error" in text or "NCCL error" in text:
            return True
        error = error.__cause__
    return False


def one_line(error: BaseException | None, limit: int = 400) -> str:
    """The message of any exception for the inside of another message."""
    text = " ".join(str(error).split()) or "no message"
    if len(text) > limit:
        text = text[:limit] + " …"
    return text
