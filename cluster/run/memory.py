"""Peak memory of a run over all its processes, sampled while it runs."""

from __future__ import annotations

import threading

import psutil


class PeakMemory:
    """Samples this process and its descendants (Ray and its workers) every few seconds, in GiB.

    Proportional set size: shared pages, of libraries and of the object store, count once over all
    processes.
    """

    def __init__(self, interval: float = 3.0) -> None:
        self.peak = 0.0
        self._interval = interval
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """Ends the sampling and returns the peak in GiB."""
        self._stopped.set()
        self._thread.join()
        return self.peak

    def _watch(self) -> None:
        while not self._stopped.wait(self._interval):
            self.peak = max(self.peak, tree_memory())


def tree_memory() -> float:
    """Proportional set size of this process and its descendants, GiB."""
    root = psutil.Process()
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            # Resident size would count libraries and the object store once for each process.
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue  # it ended after the list was made
    return total / 2**30
