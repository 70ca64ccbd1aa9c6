"""Ends the process of an engine that cannot go on, so that its fleet sees a dead actor and replaces it.

With tensor parallelism an engine's model lives in worker processes. If one of them dies or hangs, the
engine's own process lives on: its calls raise, or wait for an answer that never comes, while its heartbeat
goes on. So an error of such an engine ends its process, and so does a step that takes longer than
`rollout.step_timeout_s`. What a killed engine leaves on its host, stopped workers and segments of shared
memory, is removed by the next engine that starts there.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import psutil

from common.files import write_json

RECORDS = Path(tempfile.gettempdir()) / "zero2hero-engines"
"""A file for each engine with workers that was started on this host: its process, workers and segments."""
POLL_S = 0.5
SEGMENT = re.compile(r"(/dev/shm/psm_\w+)")
"""Names that Python gives to segments of shared memory."""


class ProcessGuard:
    """Watches the calls of one engine from a thread of its own."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        # (what, monotonic time at which it is over), or None between calls.
        self._call: tuple[str, float] | None = None
        threading.Thread(target=self._watch, daemon=True, name="process-guard").start()

    @contextlib.contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Ends the process if the block takes longer than `timeout_s`."""
        self._call = (what, time.monotonic() + self.timeout_s)
        try:
            yield
        finally:
            self._call = None

    def _watch(self) -> None:
        while True:
            time.sleep(POLL_S)
            call = self._call  # once: the main thread may replace it meanwhile
            if call is not None and time.monotonic() > call[1]:
                faulthandler.dump_traceback(file=2)
                end_process(f"{call[0]} took longer than rollout.step_timeout_s={self.timeout_s:g}")


def end_process(reason: str) -> NoReturn:
    """Kills the processes that this one has started, then ends this one without its exit handlers, which
    may wait for workers that do not answer."""
    print(f"this engine ends: {reason}", file=sys.stderr, flush=True)
    segments = _segments(os.getpid())
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()
    _remove_segments(segments)
    os._exit(1)


def record_engine(folder: Path = RECORDS) -> None:
    """Notes what this process has started, for `clean_up` of a later engine."""
    children = psutil.Process().children(recursive=True)
    processes = {str(child.pid): child.create_time() for child in children}
    own = psutil.Process()
    record = {"pid": own.pid, "created": own.create_time(), "processes": processes}
    record["segments"] = sorted(_segments(own.pid))
    write_json(folder / f"{own.pid}.json", record)


def clean_up(folder: Path = RECORDS) -> None:
    """Kills the workers and removes the segments of recorded engines whose process is gone."""
    for path in folder.glob("*.json"):
        with contextlib.suppress(OSError, ValueError):
            record = json.loads(path.read_text(encoding="utf-8"))
            if _is_alive(record["pid"], record["created"]):
                continue
            for pid, created in record["processes"].items():
                if _is_alive(int(pid), created):
                    with contextlib.suppress(psutil.Error):
                        psutil.Process(int(pid)).kill()
            _remove_segments(record["segments"])
            path.unlink()


def _is_alive(pid: int, created: float) -> bool:
    """Whether the process is there that had this number when it was recorded."""
    try:
        process = psutil.Process(pid)
        return process.create_time() == created and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _segments(pid: int) -> set[str]:
    """Segments of shared memory that a process has mapped."""
    try:
        return set(SEGMENT.findall(Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")))
    except OSError:  # not Linux
        return set()


def _remove_segments(segments: set[str] | list[str]) -> None:
    for segment in segments:
        with contextlib.suppress(OSError):
            os.unlink(segment)
