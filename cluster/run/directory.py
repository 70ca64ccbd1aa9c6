"""The run directory: what is done, which models there are, and which policy is served next.

`docs/run-directory.md` lists every file. Nothing here needs Ray or torch: `hero plan` and the tools
that read finished runs use this module too. All writes replace whole files, so a restart after any
crash reads complete ones.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import yaml
from rich.console import Console

from cluster.config import RunConfig
from cluster.run.input_check import outdated_stages, present_inputs
from cluster.run.mirror import Mirror
from cluster.stage_registry import stage_spec, stages_from
from common.errors import UserError, is_disk_full
from common.files import (
    read_json,
    read_jsonl,
    remove,
    truncate_partial_line,
    write_json,
    write_jsonl,
    write_text,
)
from common.run_paths import RunPaths
from learners.data.config import SourceConfig
from learners.data.locations import local_path
from serve.versions import current_policy, live_endpoint, set_current, store


class RunDirectory:
    """State of one run on disk, with its paths. One driver at a time holds its lock."""

    def __init__(self, config: RunConfig, mirror: Mirror | None = None) -> None:
        self.config, self._mirror = config, mirror
        self.paths = RunPaths(config.directory)
        self._lock: IO[str] | None = None

    @property
    def root(self) -> Path:
        return self.paths.root

    def committed(self) -> None:
        """Called when something is complete that a restart would continue from."""
        if self._mirror:
            self._mirror.snapshot()

    def open(self, redo: str | None = None) -> None:
        """Creates the directory, takes the lock, discards `redo` and later stages, writes the
        resolved config.

        Raises UserError before anything is removed: for a path that cannot be a run directory, for
        the layout of an older version, if another driver holds the lock, or if a stage that is not
        done again has results or checkpoints of other inputs.
        """
        self.paths.check_layout()
        self._create()
        # The lock comes first: another driver may be about to finish the stages that are checked.
        self._take_lock()
        outdated = self.check_inputs(stages_from(redo) if redo else ())
        if redo:
            self.discard_from(redo)
        for stage, changed in outdated.items():
            message = f"{stage}: interrupted before a checkpoint with other inputs: {changed}; begins again"
            _print_line(message)
            remove(self.paths.stage(stage).folder)
        # After the discard, so that config.yaml never describes results of an older configuration.
        self.paths.write_layout()
        text = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)
        write_text(self.paths.config, text)

    def check_inputs(self, redone: Sequence[str] = ()) -> dict[str, str]:
        """As `outdated_stages`, of this directory and its config."""
        return outdated_stages(self.config, self.paths, redone)

    def close(self) -> None:
        """Gives the lock back, as the end of the process does."""
        if self._lock:
            self._lock.close()

    def stage(self, stage: str) -> Path:
        """The folder of a stage, created if it is missing."""
        folder = self.paths.stage(stage).folder
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def model(self, stage: str) -> Path:
        """Hugging Face folder that a stage ends with. For a stage that the config leaves out: the
        model given instead.

        Raises UserError if the stage has not been run.
        """
        folder = self.paths.stage(stage).model
        if not folder.is_dir() and stage not in self.config.stages:
            if stage == "sft":
                return self.initial_policy()
            if stage == "reward" and self.config.reward_model.path:
                return Path(self.config.reward_model.path)
        if not folder.is_dir():
            raise UserError(
                f"{folder}: no such model; run the {stage} stage first (hero run … --from {stage})"
            )
        return folder

    def reward_model(self) -> Path | None:
        """The reward model to score with; None while there is none, or if no reward source of the
        config uses it."""
        if not self.config.rewards.uses_reward_model:
            return None
        try:
            return self.model("reward")
        except UserError:
            return None

    def initial_policy(self) -> Path:
        """What SFT starts from: the pretrain stage's model, or else the model of the config."""
        pretrained = self.paths.stage("pretrain").model
        if pretrained.is_dir() or not self.config.model.path:
            return self.model("pretrain")
        return Path(self.config.model.path)

    def sources(self, kind: str) -> list[SourceConfig]:
        """The user's sources of this kind of data, or else the file of the quickstart or of the
        collect stage."""
        configured: list[SourceConfig] | None = getattr(self.config.data, kind)
        if configured:
            return configured
        own = self.paths.rankings
        if kind != "rankings":
            own = self.paths.data(kind)
        return [SourceConfig(path=str(own))]

    def data(self, kind: str) -> list[Path]:
        """Files, folders or hub names of this kind of data. Raises UserError for a file that is
        missing."""
        paths = []
        for source in self.sources(kind):
            path = local_path(source, self.config.data, f"data.{kind}")
            paths.append(path or Path(source.path))
        return paths

    def done(self, stage: str) -> dict[str, Any] | None:
        """The record that a finished stage left; None if it is not finished."""
        record: dict[str, Any] | None = read_json(self.paths.stage(stage).done)
        return record

    def begin(self, stage: str) -> None:
        """Records what the stage is made from; `open` has made sure that nothing of other inputs is
        there."""
        write_json(self.paths.stage(stage).inputs, present_inputs(self.config, stage))

    def finish(self, stage: str, seconds: float, results: dict[str, Any]) -> None:
        """Records that a stage is finished, from then on it is skipped; then removes its
        checkpoints: a crash between the two costs nothing."""
        record = {"seconds": seconds, "time": time.time(), "results": results}
        write_json(self.paths.stage(stage).done, record)
        remove(self.paths.stage(stage).checkpoints)
        self.committed()

    def check_result(self, stage: str) -> None:
        """Raises UserError if a finished stage's result is gone, which later stages would meet much
        later."""
        result = self.paths.stage(stage).folder / stage_spec(stage).result
        if not result.exists():
            raise UserError(
                f"{result} is missing, although stage {stage} is finished; put it back, or add "
                f"--from {stage} to do it again"
            )

    def discard_from(self, first: str) -> None:
        """Removes what the stage and all later ones have written, but not a version that an
        endpoint serves now."""
        served = None
        if live_endpoint(self.root):
            served = current_policy(self.root).folder
        for stage in stages_from(first):
            for folder in (self.paths.stage(stage).folder, *self.paths.versions.glob(f"{stage}-*")):
                # What could not be removed would count as done, so no error is passed over.
                if folder != served:
                    remove(folder)
        # The report would draw curves of a stage that nobody does again.
        truncate_partial_line(self.paths.metrics)
        rows = read_jsonl(self.paths.metrics)
        write_jsonl(self.paths.metrics, [row for row in rows if row["stage"] not in stages_from(first)])
        # The pointer goes with the version that it names, or `hero serve` would fail on it.
        current = read_json(self.paths.current)
        if current and not (self.root / current["path"]).is_dir():
            self.paths.current.unlink()

    def store_version(self, stage: str, version: int, folder: Path) -> str:
        """Stores a policy as a version that can be served, and returns its name."""
        settings = self.config.serve
        name = f"{stage}-{version}"
        pinned = [model.path for model in settings.models.values()]
        store(self.root, name, folder, settings.keep_versions, pinned)
        return name

    def publish(self, stage: str, version: int, folder: Path) -> None:
        """Stores a policy and makes it the one to serve, unless an endpoint serves this run.

        Then only a promotion moves the pointer, since it measures the new version against the
        present one first.
        """
        name = self.store_version(stage, version, folder)
        # Nobody would see that an untested version has replaced the one that is served.
        if not live_endpoint(self.root):
            set_current(self.root, name, who="hero run", why="trained while nothing served the run")
        self.committed()

    def _create(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.paths.lock, "a")  # noqa: SIM115 (held until the process ends)
        except OSError as error:
            if is_disk_full(error):
                raise
            raise UserError(
                f"run_dir={self.root}: no directory that can be written to ({error.strerror}: "
                f"{error.filename}); choose another run_dir"
            ) from None

    def _take_lock(self) -> None:
        assert self._lock is not None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{self.root}: another `hero run` is at work in this directory; wait for it or stop it"
            ) from None


def _print_line(line: str) -> None:
    Console(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)
