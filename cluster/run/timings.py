"""Seconds by stage and peak memory of a run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from cluster.config import Stage
from cluster.run.memory import PeakMemory
from common.files import read_json, write_json


class Timings:
    """Seconds by stage and peak memory of a run, over all the sessions it took; on disk after every stage."""

    def __init__(self, path: Path, undone: Sequence[Stage]) -> None:
        self.path, self._memory, self._last = path, PeakMemory(), time.time()
        self.found = read_json(path) or {"stages": {}, "peak_memory_gib": 0.0, "total_s": 0.0}
        for stage in undone:  # time of results that are no longer there
            self.found["stages"].pop(stage, None)

    def add(self, stage: str) -> None:
        """Puts the time since the last call down to a stage."""
        spent = time.time() - self._last
        self._last += spent
        self.found["stages"][stage] = self.found["stages"].get(stage, 0.0) + spent
        self.found["total_s"] = sum(self.found["stages"].values())
        self.found["peak_memory_gib"] = max(self.found["peak_memory_gib"], self._memory.peak)
        write_json(self.path, self.found)

    def close(self) -> None:
        self._memory.stop()
        self.add("stop")
