"""Checkpoints of one stage: learner states with what the driver keeps beside them.

Written in two steps, since the driver's own state is complete only after the iteration: `save` has
the learners write, `commit` writes `manifest.json` last. A folder without a manifest, or with other
files than it lists, is corrupt and is passed over.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from common.errors import DiskFullError, UserError
from common.files import file_sizes, read_json, size_now, write_json

MANIFEST = "manifest.json"


class CheckpointSchedule:
    """When a stage writes a checkpoint: every so many steps, and not sooner than some minutes after the
    one before. The last step needs none, since the stage ends with it."""

    def __init__(self, every: int, last_step: int, minutes: float | None = None) -> None:
        self._every, self._last_step = every, last_step
        self._pause_s = 60 * (minutes or 0.0)
        self._written_at = time.monotonic()
        self.saved_step: int | None = None
        """Of the newest checkpoint that this process wrote."""

    def is_due(self, step: int) -> bool:
        if step % self._every or step >= self._last_step:
            return False
        return time.monotonic() - self._written_at >= self._pause_s

    def saved(self, step: int) -> None:
        """Counts the minutes from now, the end of writing."""
        self.saved_step, self._written_at = step, time.monotonic()


class Checkpoints:
    """Folders named by step. `save_state` writes the learners' state into one and returns, when it
    is complete, the size of every file by its path in the folder, as those who wrote them see it."""

    def __init__(
        self,
        folder: Path,
        save_state: Callable[[Path], dict[str, int] | None],
        keep: int = 1,
        committed: Callable[[], None] = lambda: None,
    ) -> None:
        """`committed` is called after each commit."""
        self.folder, self._save_state, self._keep = folder, save_state, keep
        self._committed = committed
        self._sizes: dict[int, dict[str, int] | None] = {}

    def latest(self) -> dict[str, Any] | None:
        """The driver's state of the newest complete checkpoint, with its "step"; None if there is
        none."""
        # A crash while a checkpoint was written, or a full disk, leaves the newest one incomplete.
        for step in reversed(self._steps()):
            corruption = self.corruption(step)
            if corruption is None:
                return {"step": step, **read_json(self.path(step) / MANIFEST)["driver"]}
            message = f"{self.path(step)} is corrupt ({corruption}) and is not used"
            Console(stderr=True).print(message, markup=False, highlight=False, soft_wrap=True)
        return None

    def path(self, step: int) -> Path:
        return self.folder / f"{step:06d}"

    def save(self, step: int) -> None:
        """Has the learners write their state. It counts once it is committed.

        Raises DiskFullError after removing the incomplete folder, so that the older checkpoint
        keeps its room.
        """
        shutil.rmtree(self.path(step), ignore_errors=True)
        try:
            self._sizes[step] = self._save_state(self.path(step))
        except DiskFullError:
            shutil.rmtree(self.path(step), ignore_errors=True)
            raise

    def commit(self, step: int, driver: dict[str, Any]) -> None:
        """Writes the manifest of `step`, then removes older checkpoints and those of a later
        step."""
        # Not what this host sees: it may have other hosts' files in a cache, shorter than they are now.
        files = self._sizes.pop(step, None) or file_sizes(self.path(step))
        write_json(self.path(step) / MANIFEST, {"driver": driver, "files": files})
        steps = self._steps()
        older = [s for s in steps if s <= step][: -self._keep]
        # Later steps are left from before a restart at an older checkpoint.
        later = [s for s in steps if s > step]
        for outdated in older + later:
            shutil.rmtree(self.path(outdated))
        self._committed()

    def corruption(self, step: int) -> str | None:
        """What is wrong with the files of a checkpoint; None if it is complete."""
        try:
            expected = (read_json(self.path(step) / MANIFEST) or {})["files"]
        except (UserError, KeyError, TypeError):
            return f"{MANIFEST} is missing or incomplete: its writing was not finished"
        for name, size in expected.items():
            actual = size_now(self.path(step) / name) or 0
            if actual != size:
                return f"{name} has {actual} of {size} bytes"
        return None

    def _steps(self) -> list[int]:
        return sorted(int(path.name) for path in self.folder.glob("[0-9]*") if path.is_dir())
