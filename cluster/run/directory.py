"""A run is a directory: where everything is, what is done, and which policy is current.

All writes are atomic (a partial file is renamed), so whoever restarts, after whatever death, finds whole files.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import IO, Any

import yaml

from cluster.config import STAGES, RunConfig, Stage
from common.errors import UserError
from common.files import read_json, write_json, write_text
from learners.data.config import SourceConfig
from learners.data.sources import local_path
from serve.versions import endpoint, keep, point, resolve

# What a finished stage was made from, and the first of a run besides: if one of these sections changes, its result no
# longer fits the config.
BASE = ("seed", "data", "quickstart", "model")
SECTIONS: dict[Stage, tuple[str, ...]] = {
    "pretrain": ("pretrain",),
    "sft": ("sft",),
    "collect": ("collect",),
    "reward": ("reward_model",),
    "ppo": ("rewards", "ppo"),
    "evaluate": ("evaluate",),
}


class Run:
    """Paths and durable state of one run directory. One driver at a time holds its lock."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.root = config.directory
        self._lock: IO[str] | None = None

    def open(self, redo: Stage | None = None) -> None:
        """Creates the directory, takes the lock, forgets `redo` and what comes after it, records the resolved config.

        Raises UserError before anything is removed if a stage that is kept was finished with another configuration.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.root / "lock", "a")  # noqa: SIM115 (held until the process ends)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{self.root}: another `hero run` is at work in this directory; wait for it or stop it"
            ) from None
        kept = [s for s in self.config.stages if redo is None or STAGES.index(s) < STAGES.index(redo)]
        changed = [s for s in kept if (d := self.done(s)) and d["config"] != self.fingerprint(s)]
        if changed:
            raise UserError(
                f"{self.root}: stage {changed[0]} was finished with another configuration of "
                f"{', '.join(self._sections(changed[0]))}; add --from {changed[0]} to do it again, or choose another run_dir"
            )
        if redo:
            self.forget(redo)
        write_text(
            self.root / "config.yaml", yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)
        )

    def close(self) -> None:
        if self._lock:
            self._lock.close()

    def stage(self, stage: str) -> Path:
        folder = self.root / stage
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def model(self, stage: str) -> Path:
        """Hugging Face folder that a stage ends with, or what the config gives in place of a stage that it leaves out;
        UserError if that stage has not been run."""
        folder = self.root / stage / "model"
        if not folder.is_dir() and stage not in self.config.stages:
            if stage == "sft":
                return self.policy_path()
            if stage == "reward" and self.config.reward_model.path:
                return Path(self.config.reward_model.path)
        if not folder.is_dir():
            raise UserError(
                f"{folder}: no such model; run the {stage} stage first (hero run … --from {stage})"
            )
        return folder

    def reward_model(self) -> Path | None:
        """The reward model to score with; None while there is none, or if the config's rewards do not ask for it."""
        try:
            return self.model("reward") if self.config.rewards.from_model else None
        except UserError:
            return None

    def policy_path(self) -> Path:
        """What SFT starts from: the pretrain stage's model, or the model of the config."""
        if (self.root / "pretrain" / "model").is_dir() or not self.config.model.path:
            return self.model("pretrain")
        return Path(self.config.model.path)

    def sources(self, kind: str) -> list[SourceConfig]:
        """The user's sources of this kind of data, or the file that the world or the collect stage wrote."""
        own = {"corpus": "data/corpus.txt", "rankings": "collect/rankings.jsonl"}.get(
            kind, f"data/{kind}.jsonl"
        )
        return getattr(self.config.data, kind) or [SourceConfig(path=str(self.root / own))]

    def data(self, kind: str) -> list[Path]:
        """Files, folders or hub names of this kind of data. Raises UserError for a file that is missing."""
        sources = self.sources(kind)
        return [
            local_path(source, self.config.data, f"data.{kind}") or Path(source.path) for source in sources
        ]

    def _sections(self, stage: Stage) -> tuple[str, ...]:
        return (*(BASE if stage == self.config.stages[0] else ()), *SECTIONS[stage])

    def fingerprint(self, stage: Stage) -> str:
        values = self.config.model_dump(mode="json")
        relevant = {section: values[section] for section in self._sections(stage)}
        return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:16]

    def done(self, stage: str) -> dict[str, Any] | None:
        return read_json(self.root / stage / "done.json")

    def finish(self, stage: Stage, seconds: float, results: dict[str, Any]) -> None:
        record = {
            "config": self.fingerprint(stage),
            "seconds": seconds,
            "time": time.time(),
            "results": results,
        }
        write_json(self.stage(stage) / "done.json", record)

    def forget(self, first: Stage) -> None:
        """Removes what the given stage and all later ones of the config have written, but not the version that an endpoint
        serves now."""
        served = resolve(self.root).model if endpoint(self.root) else None
        for stage in STAGES[STAGES.index(first) :]:
            for folder in (self.root / stage, *(self.root / "versions").glob(f"{stage}-*")):
                if folder != served:
                    shutil.rmtree(folder, ignore_errors=True)
        current = read_json(self.root / "current.json")
        if current and not (self.root / current["path"]).is_dir():
            (self.root / "current.json").unlink()

    def keep(self, stage: str, version: int, folder: Path) -> str:
        """Keeps a policy as a version that can be served, and returns its name."""
        settings, name = self.config.serve, f"{stage}-{version}"
        keep(
            self.root, name, folder, settings.keep_versions, [also.path for also in settings.models.values()]
        )
        return name

    def promote(self, stage: str, version: int, folder: Path) -> None:
        """Keeps a policy and points at it, unless an endpoint serves this run: then only a promotion, which looks at what
        it promotes, moves the pointer."""
        name = self.keep(stage, version, folder)
        if not endpoint(self.root):
            point(self.root, name, who="hero run", why="trained while nothing served the run")
