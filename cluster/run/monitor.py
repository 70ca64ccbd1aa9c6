"""Where a run can be watched: a W&B run for each stage in one group, and a plain metrics.jsonl beside it.

Offline unless WANDB_API_KEY is set (or WANDB_MODE says otherwise): `wandb sync` uploads an offline run later. The
W&B run id is kept with the stage, so that a stage that was interrupted continues its own curve.
"""

from __future__ import annotations

import json
import math
import os
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import wandb

from common.files import read_jsonl, truncate_partial_line, write_text


class Monitor:
    """Metrics, sample responses and lineage of one stage. A context manager."""

    def __init__(self, root: Path, stage: str, name: str, config: dict[str, Any]) -> None:
        self.root, self.stage, self.name, self.config = root, stage, name, config
        self.folder = root / stage
        self.folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        id_file = self.folder / "wandb_id"
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex[:8])
        online = bool(os.environ.get("WANDB_API_KEY"))
        self._wandb = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "zero2hero"),
            group=self.name,
            job_type=self.stage,
            name=f"{self.name}-{self.stage}",
            id=id_file.read_text().strip(),
            resume="allow",
            mode=os.environ.get("WANDB_MODE") or ("online" if online else "offline"),  # type: ignore[arg-type]
            dir=self.root,
            config=self.config,
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                x_disable_meta=True,
                disable_job_creation=True,
            ),
        )
        self._metrics = open(self.root / "metrics.jsonl", "a", encoding="utf-8")
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self._metrics.close()
        self._wandb.finish(exit_code=0 if kind is None else 1)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """One row of numbers; what is not finite is written as null, so that it shows."""
        self._wandb.log(metrics, step=step)
        plain = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        self._metrics.write(
            json.dumps({"stage": self.stage, "step": step, "time": time.time(), **plain}) + "\n"
        )
        self._metrics.flush()

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        """A table of responses."""
        columns = list(rows[0])
        table = wandb.Table(columns=columns, data=[[row[c] for c in columns] for row in rows])
        self._wandb.log({"samples": table}, step=step)
        with open(self.folder / "samples.jsonl", "a", encoding="utf-8") as file:
            file.write("".join(json.dumps({"step": step, **row}) + "\n" for row in rows))

    def batch(self, step: int, prompts: Sequence[int], digest: str) -> None:
        """What an iteration learned from: the numbers of its prompts and a digest of every sampled token."""
        with open(self.folder / "batches.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "prompts": list(prompts), "digest": digest}) + "\n")

    def alarm(self, step: int, name: str, evidence: str) -> None:
        self._wandb.alert(title=name, text=evidence, level="WARN")
        with open(self.folder / "alarms.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "alarm": name, "evidence": evidence}) + "\n")

    def lineage(self, consumed: Sequence[Path], produced: list[Path]) -> None:
        """Which files and models this stage was made from and which it made, as W&B references and in lineage.jsonl."""
        for made, paths in ((False, consumed), (True, produced)):
            for path in paths:
                artifact = wandb.Artifact(
                    f"{self.name}-{path.parent.name}-{path.name}", type="model" if path.is_dir() else "data"
                )
                artifact.add_reference(path.absolute().as_uri(), checksum=False)
                if made:
                    self._wandb.log_artifact(artifact)
                elif self._wandb.settings.mode == "online":
                    self._wandb.use_artifact(artifact)
        row = {
            "stage": self.stage,
            "time": time.time(),
            "consumed": [str(p) for p in consumed],
            "produced": [str(p) for p in produced],
        }
        with open(self.root / "lineage.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def truncate(self, stage: str, last_step: int) -> list[dict[str, Any]]:
        """Drops this stage's rows after the step that a resumed stage starts from, so that no step is there twice. Returns
        the stage's metrics up to there."""
        self._metrics.close()
        kept: list[dict[str, Any]] = []
        own = (self.folder / f"{name}.jsonl" for name in ("samples", "alarms", "quarantine", "batches"))
        for path in (*own, self.root / "metrics.jsonl"):
            truncate_partial_line(path)
            rows = read_jsonl(path)
            kept = [r for r in rows if r.get("stage", stage) != stage or r["step"] <= last_step]
            if len(kept) < len(rows):
                write_text(path, "".join(json.dumps(r) + "\n" for r in kept))
        self._metrics = open(self.root / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115 (closed on exit)
        return [r for r in kept if r["stage"] == stage]
