"""One log file per process for the output of vLLM, Ray and DeepSpeed, which would fill the terminal.

Every actor calls `log_to` first. Its libraries print to the file. Errors also reach the terminal of the
driver, under the actor's name: Ray forwards an actor's standard error, and `keep_output` chooses what is
shown of it.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

# Printed at every start and harmless here: they would hide the warnings that matter.
EXPECTED = (
    "Setting accelerator to CPU",
    "unable to detect it",
    "has no CUDA runtime",
    "socket.cpp",
    "W0000",
    "ServeController.graceful_shutdown failed",
)

ERROR_LINE = re.compile(r"^(\S+: )?(ERROR|CRITICAL)\b")
"""The first line of an error that an actor (see `log_to`) or Serve's controller has logged."""


class _NotExpected(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return not any(expected in text for expected in EXPECTED)


def keep_output(path: Path, source: str, lines: Iterable[str], is_message: bool = False) -> None:
    """Appends what another process printed to a file. Only errors, and messages of Ray itself, reach the
    terminal: libraries print much before `log_to` is called, and Serve about every start."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        for line in lines:
            file.write(f"({source}) {line}\n")
            is_expected = any(expected in line for expected in EXPECTED)
            if (is_message or ERROR_LINE.match(line)) and not is_expected:
                print(line, file=sys.stderr, flush=True)


def log_to(path: Path, name: str) -> None:
    """Redirects standard output and error of this process to `path`.

    Errors of Python logging go to the terminal as well.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    terminal = os.fdopen(os.dup(2), "w", buffering=1)
    log = open(path, "a", buffering=1)  # noqa: SIM115 (stays open for the life of the process)
    # The file descriptors are replaced and not only sys.stdout: C++ code writes to these.
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    to_terminal = logging.StreamHandler(terminal)
    to_terminal.setLevel(logging.ERROR)
    to_terminal.setFormatter(logging.Formatter(f"{name}: %(levelname)s %(message)s"))
    to_terminal.addFilter(_NotExpected())
    to_file = logging.StreamHandler(sys.stderr)
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[to_file, to_terminal], force=True)
