"""The one exception that is the user's to mend: a wrong config, file, row or machine.

Raised anywhere, printed by the command line as a single message without a traceback.
"""

import errno


class UserError(Exception):
    """Says what is wrong and where (file, key or row), what was expected, and what to do."""


class FleetError(RuntimeError):
    """An actor failed or died; the message names it, what it was doing and its log."""


def is_disk_full(fault: BaseException) -> bool:
    """Whether a write failed because the disk, or the user's share of it, is full."""
    return isinstance(fault, OSError) and fault.errno in (errno.ENOSPC, errno.EDQUOT)
