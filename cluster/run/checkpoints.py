"""Checkpoints of one stage: learner states with what the driver keeps beside them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.fleets.fleet import Fleet
from common.errors import UserError
from common.files import read_json, write_json

MANIFEST = "manifest.json"


class Checkpoints:
    """Learner states of one stage: folders named by step. `manifest.json`, written last, has the sizes of a folder's files and
    what the driver keeps."""

    def __init__(self, folder: Path, keep: int = 1) -> None:
        self.folder, self.keep = folder / "checkpoints", keep

    def newest(self) -> dict[str, Any] | None:
        """The driver's state of the newest checkpoint that is whole, with its "step"."""
        steps = self._steps()
        for step in reversed(steps):
            damage = self._damage(step)
            if damage is None:
                return {"step": step, **read_json(self.path(step) / MANIFEST)["driver"]}
            told = f"{self.path(step)} is not whole ({damage}) and is left out"
            Console(stderr=True).print(told, markup=False, highlight=False, soft_wrap=True)
        return None

    def path(self, step: int) -> Path:
        return self.folder / f"{step:06d}"

    def save(self, step: int, learners: Fleet) -> None:
        """Has the learners write their state; it counts once it is committed. What a full disk leaves is removed."""
        shutil.rmtree(self.path(step), ignore_errors=True)
        try:
            learners.all("save", self.path(step), "state")
        except UserError:
            shutil.rmtree(self.path(step), ignore_errors=True)
            raise

    def commit(self, step: int, driver: dict[str, Any]) -> None:
        """Declares the folder of `step` whole, then removes all but the newest ones."""
        write_json(self.path(step) / MANIFEST, {"driver": driver, "files": _sizes(self.path(step))})
        steps = self._steps()
        for old in [s for s in steps if s <= step][: -self.keep] + [s for s in steps if s > step]:
            shutil.rmtree(self.path(old))

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _steps(self) -> list[int]:
        return sorted(int(p.name) for p in self.folder.glob("[0-9]*") if p.is_dir())

    def _damage(self, step: int) -> str | None:
        try:
            expected = (read_json(self.path(step) / MANIFEST) or {})["files"]
        except (ValueError, KeyError):
            return "its writing was not finished"
        found = _sizes(self.path(step))
        return next(
            (
                f"{name} has {found.get(name, 0)} of {size} bytes"
                for name, size in expected.items()
                if found.get(name, 0) != size
            ),
            None,
        )


def _sizes(folder: Path) -> dict[str, int]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {str(p.relative_to(folder)): p.stat().st_size for p in files}
