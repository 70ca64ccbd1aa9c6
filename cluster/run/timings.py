"""Seconds by stage and peak memory of a run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from cluster.run.memory import PeakMemory
from common.files import read_json, write_json


class Timings:
    """Seconds by stage and peak memory of a run, summed over all its restarts; written after every
    stage."""

    def __init__(self, path: Path, unfinished: Sequence[str]) -> None:
        """`unfinished` are the stages without results: the time of results that were discarded does
        not count."""
        self.path, self._memory, self._last = path, PeakMemory(), time.time()
        self.totals = read_json(path) or {"stages": {}, "peak_memory_gib": 0.0, "total_s": 0.0}
        for stage in unfinished:
            self.totals["stages"].pop(stage, None)

    def add(self, stage: str) -> None:
        """Adds the time since the last call to a stage's."""
        # Wall clock: the sum over all restarts is what the user has waited for.
        seconds = time.time() - self._last
        self._last += seconds
        stages = self.totals["stages"]
        stages[stage] = stages.get(stage, 0.0) + seconds
        self.totals["total_s"] = sum(stages.values())
        self.totals["peak_memory_gib"] = max(self.totals["peak_memory_gib"], self._memory.peak)
        write_json(self.path, self.totals)

    def close(self) -> None:
        self._memory.stop()
        self.add("stop")
