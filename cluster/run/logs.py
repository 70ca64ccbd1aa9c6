"""`hero logs RUN [ACTOR]`: what the actors of a run print, on whichever host they are.

Every actor writes RUN/logs/NAME.log, and the run directory is the same on all hosts. Its first line
names the host and the process.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from common.errors import UserError
from common.files import try_lock
from common.run_paths import RunPaths

POLL_S = 0.5
LAST_LINE = 4096


def list_logs(root: Path, console: Console) -> None:
    """One line for each log: its name, how long ago it was written to by this host's clock and the file
    system's, and its last line."""
    now = time.time()
    for path in _logs(root):
        # Two clocks where the file system is another host's, so never a negative age.
        age = max(0.0, now - path.stat().st_mtime)
        line = f"{path.stem:20} {age:8.0f} s ago  {_last_line(path)}"
        console.print(line, markup=False, highlight=False, overflow="ellipsis", no_wrap=True)


def print_log(root: Path, actor: str, follow: bool, console: Console) -> None:
    """Prints the log of an actor; with `follow`, what is added to it until the run ends. Raises UserError if
    there is no such log."""
    path = RunPaths(root).logs / f"{actor}.log"
    if path not in _logs(root):
        names = ", ".join(log.stem for log in _logs(root)) or "none yet"
        raise UserError(f"{actor}: no log of this name in {path.parent} ({names})")
    for text in _read(path, follow, root):
        console.print(text, end="", markup=False, highlight=False, soft_wrap=True)


def _read(path: Path, follow: bool, root: Path) -> Iterator[str]:
    with open(path, encoding="utf-8", errors="replace") as file:
        while True:
            is_at_work = follow and _is_at_work(root)
            # After the look at the lock: what the run has written before its end is read in any case.
            if text := file.read():
                yield text
            if not is_at_work:
                return
            time.sleep(POLL_S)


def _is_at_work(root: Path) -> bool:
    lock = RunPaths(root).lock
    if not lock.exists():
        return False
    try:
        with try_lock(lock, "at work"):
            return False
    except UserError:
        return True


def _logs(root: Path) -> list[Path]:
    return sorted(RunPaths(root).logs.glob("*.log"))


def _last_line(path: Path) -> str:
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - LAST_LINE))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
