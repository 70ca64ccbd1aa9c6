"""A process of its own for code of the user's, which may hang, crash or leave: both ends of it.

Imports neither torch nor Ray, so that a process starts in a tenth of a second.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from common.plugins import child_environment

LOAD_TIMEOUT_S = 600.0
"""For the import of the user's module, which may import torch and load a model."""
MAX_REASON_CHARACTERS = 300
PR_SET_PDEATHSIG = 1
"""See prctl(2)."""


class ChildProcess:
    """`python -m MODULE FD ARGUMENTS`, where FD is the process's end of `connection`."""

    def __init__(self, module: str, *arguments: str) -> None:
        self.connection: Connection
        self.connection, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(theirs.fileno()), *arguments],
            pass_fds=[theirs.fileno()],
            env={**os.environ, **child_environment()},
        )
        theirs.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self.connection.close()

    def end(self) -> str:
        """Waits for the end of a process that has closed its connection; says how it ended."""
        try:
            code: Any = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:  # it has closed the connection and goes on
            code = "unknown"
        self.kill()
        return f"its process ended (exit code {code})"


def begin_child() -> Connection:
    """What the process does first; returns its end of the connection."""
    # Killed by the kernel when its parent dies: code that hangs would not notice.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # Code that starts `python program.py` wants the folder of the program on its import path.
    os.environ.pop("PYTHONSAFEPATH", None)
    # Ctrl-C goes to every process of a terminal; the driver decides what follows.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return Connection(int(sys.argv[1]))
