"""Where a run can be watched: a W&B run for each stage in one group, and a plain metrics.jsonl beside it.

W&B is offline unless WANDB_API_KEY is set (or WANDB_MODE says otherwise), or if it cannot be reached
(`cluster.run.wandb_run`); `wandb sync` uploads an offline run later. The W&B run id is stored with the
stage, so an interrupted stage continues its own curve.
"""

from __future__ import annotations

import math
import os
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Self

from cluster.run.wandb_run import WandbRun
from common.files import read_jsonl, to_json, truncate_partial_line, write_jsonl
from common.run_paths import RunPaths


class Monitor:
    """Metrics, sample responses and lineage of one stage. A context manager."""

    def __init__(self, root: Path, stage: str, name: str, config: dict[str, Any]) -> None:
        """`name` is the run's, `config` its resolved configuration, for W&B."""
        self.stage, self.name, self.config = stage, name, config
        self._run_paths = RunPaths(root)
        self._paths = self._run_paths.stage(stage)
        self._paths.folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        id_file = self._paths.wandb_id
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex[:8])
        self._wandb = WandbRun(
            self._run_paths.root,
            # One run for each stage: their steps would collide in one.
            project=os.environ.get("WANDB_PROJECT", "zero2hero"),
            group=self.name,
            job_type=self.stage,
            name=f"{self.name}-{self.stage}",
            id=id_file.read_text().strip(),
            resume="allow",
            config=self.config,
        )
        self._metrics = self._open_metrics()
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self._metrics.close()
        self._wandb.finish(failed=kind is not None)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """One row of numbers. One that is not finite is written as null, so that it is visible."""
        self._wandb.log(metrics, step=step)
        row: dict[str, Any] = {"stage": self.stage, "step": step, "time": time.time()}
        for name, value in metrics.items():
            row[name] = value if math.isfinite(value) else None
        # JSON has no nan, and a missing value would look like a metric that this step does not have.
        self._metrics.write(to_json(row) + "\n")
        self._metrics.flush()

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        """A table of responses."""
        self._wandb.log_table("samples", rows, step)
        for row in rows:
            _append(self._paths.samples, {"step": step, **row})

    def batch(self, step: int, prompts: Sequence[int], digest: str) -> None:
        """What an iteration learned from: its prompts' ids and a digest of every sampled token."""
        _append(self._paths.batches, {"step": step, "prompts": list(prompts), "digest": digest})

    def alarm(self, step: int, name: str, evidence: str) -> None:
        self._wandb.alert(name, evidence)
        _append(self._paths.alarms, {"step": step, "alarm": name, "evidence": evidence})

    def lineage(self, consumed: Sequence[Path], produced: Sequence[Path]) -> None:
        """Files and models that this stage was made from and those it made, as W&B references and in
        lineage.jsonl."""
        self._wandb.lineage(self.name, consumed, produced)
        row = {
            "stage": self.stage,
            "time": time.time(),
            "consumed": [str(path) for path in consumed],
            "produced": [str(path) for path in produced],
        }
        _append(self._run_paths.lineage, row)

    def truncate_after(self, last_step: int) -> list[dict[str, Any]]:
        """Removes this stage's rows after the step that a restarted stage continues from, so that no
        step is there twice. Returns the stage's metrics up to that step."""
        for path in self._paths.step_logs:
            _remove_rows_after(path, last_step, self.stage)
        # The file is replaced, so an open one would write to the old content.
        self._metrics.close()
        rows = _remove_rows_after(self._run_paths.metrics, last_step, self.stage)
        self._metrics = self._open_metrics()
        return [row for row in rows if row["stage"] == self.stage]

    def _open_metrics(self) -> IO[str]:
        return open(self._run_paths.metrics, "a", encoding="utf-8")


def _append(path: Path, row: dict[str, Any]) -> None:
    # Not flushed to the disk each time: a restart removes and repeats the rows after its checkpoint.
    with open(path, "a", encoding="utf-8") as file:
        # Messages of a Parquet file may hold dates.
        file.write(to_json(row) + "\n")


def _remove_rows_after(path: Path, last_step: int, stage: str) -> list[dict[str, Any]]:
    """Removes rows of a later step from a JSONL file and returns the rest. In a file of several stages
    (rows with "stage") those of the other stages stay."""
    truncate_partial_line(path)
    rows = read_jsonl(path)
    kept = []
    for row in rows:
        if row["step"] <= last_step or row.get("stage", stage) != stage:
            kept.append(row)
    if len(kept) < len(rows):
        write_jsonl(path, kept)
    return kept
