"""Sleep and wake of a vLLM engine that shares its GPUs with learners and scoring models.

    awake ──sleep(1)──► weights in host memory, no cache ──wake(weights)──► wake(kv_cache)──► awake
    awake ──sleep(2)──► nothing ──wake(weights)──► memory without weights ──update──► wake(kv_cache)──► awake

An engine works only when all parts are awake and the weights are there; otherwise it refuses. On CPU vLLM
frees nothing and keeps the same states, so the order of these calls is the same there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.hardware import require_free_memory

TAGS = ("weights", "kv_cache")


class EngineSleep:
    """What of an engine is asleep. `measures`: this process holds the GPU memory itself, so it can compare
    what is free with what the engine took before."""

    def __init__(self, llm: Any, measures: bool = False) -> None:
        self.llm, self.measures = llm, measures
        self.asleep: set[str] = set()
        self.lacks_weights = False
        """Dropped at level 2, and not updated since."""
        self._taken: dict[str, int] = {}
        """Bytes that each part took when it woke last."""

    def sleep(self, level: int) -> None:
        """Frees all parts; those that are asleep stay so. Level 1 keeps the weights in host memory, unless
        there were none."""
        if not self.asleep >= set(TAGS):
            # Partly awake is what a sync has left that failed; vLLM counts as asleep then.
            if self.asleep:
                self.wake(TAGS)
            self.llm.sleep(level=level, mode="abort")
            self.lacks_weights = self.lacks_weights or level == 2
            self.asleep = set(TAGS)

    def wake(self, tags: Sequence[str]) -> None:
        """Takes memory for these parts again; those that are awake stay so. Raises RuntimeError if what they
        had before is not free."""
        for tag in tags:
            if tag not in self.asleep:
                continue
            if self.measures:
                require_free_memory(self._taken.get(tag, 0), f"{tag} of the engine")
            before = self._free()
            self.llm.wake_up([tag])
            self._taken[tag] = before - self._free()
            self.asleep.remove(tag)

    def updated(self) -> None:
        """New weights are loaded."""
        self.lacks_weights = False

    def require_awake(self) -> None:
        """Raises RuntimeError if the engine cannot work."""
        if self.asleep:
            raise RuntimeError(f"the engine is asleep ({', '.join(sorted(self.asleep))}); wake it first")
        if self.lacks_weights:
            raise RuntimeError("the engine has dropped its weights; it needs an update first")

    def _free(self) -> int:
        if not self.measures:
            return 0
        import torch

        return torch.cuda.mem_get_info()[0]
