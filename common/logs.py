"""Keeps the chatter of vLLM, Ray and DeepSpeed out of the terminal and in a file per process.

Every actor calls `log_to` first. What its libraries print goes to the file; warnings and errors also reach the
terminal of the driver (Ray forwards an actor's standard error) under the actor's name.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

# Known to be harmless here, seen at every start: they would drown the warnings that matter.
_EXPECTED = (
    "Setting accelerator to CPU",
    "unable to detect it",
    "has no CUDA runtime",
    "socket.cpp",
    "W0000",
)


class _NotExpected(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return not any(known in text for known in _EXPECTED)


def log_to(path: Path, name: str) -> None:
    """Redirects this process's standard output and error to `path`; errors of Python logging stay visible as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    terminal = os.fdopen(os.dup(2), "w", buffering=1)
    log = open(path, "a", buffering=1)  # noqa: SIM115 (stays open for the life of the process)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    visible = logging.StreamHandler(terminal)
    visible.setLevel(logging.ERROR)
    visible.setFormatter(logging.Formatter(f"{name}: %(levelname)s %(message)s"))
    visible.addFilter(_NotExpected())
    written = logging.StreamHandler(sys.stderr)
    written.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[written, visible], force=True)
