"""A W&B run that never ends ours: where W&B cannot be reached, does not know the key or stops working, the
stage goes on, and one line says how to upload what was recorded.

    online ──start fails──► offline ──start fails──► nothing is recorded
      └────────────┴──── a call fails ────────────────────┘
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import wandb
from rich.console import Console

from common.errors import one_line

START_TIMEOUT_S = 15.0
"""How long the start of a run may wait for W&B; its own default is 90 s, and then an error."""
FINISH_TIMEOUT_S = 60.0
"""How long the end of a stage may wait for uploads. W&B would wait until the network is back."""


class WandbRun:
    """The W&B run of one stage. Its methods never raise."""

    _unreachable: ClassVar[bool] = False
    """Whether an earlier stage of this process has found W&B out of reach: each further one would wait
    again."""

    def __init__(self, folder: Path, **run: Any) -> None:
        """Starts or continues a run whose files are in `folder`/wandb. `run` are arguments of
        `wandb.init`."""
        self._run: Any = None
        self._folder = folder
        mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        if WandbRun._unreachable and mode == "online":
            mode = "offline"
        self._init: dict[str, Any] = {
            **run,
            "dir": folder,
            # Else the run of a stage that failed would be returned again.
            "reinit": "finish_previous",
            "settings": wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                x_disable_meta=True,
                disable_job_creation=True,
                init_timeout=START_TIMEOUT_S,
                login_timeout=START_TIMEOUT_S,
                finish_timeout=FINISH_TIMEOUT_S,
                finish_timeout_raises=True,
            ),
        }
        self._start(mode)

    def log(self, metrics: dict[str, float], step: int) -> None:
        self._guarded(lambda run: run.log(metrics, step=step))

    def log_table(self, name: str, rows: Sequence[dict[str, Any]], step: int) -> None:
        """Rows may have different keys."""
        columns = list(dict.fromkeys(key for row in rows for key in row))

        def send(run: Any) -> None:
            table = wandb.Table(columns=columns)
            for row in rows:
                table.add_data(*(_cell(row.get(column)) for column in columns))
            run.log({name: table}, step=step)

        self._guarded(send)

    def alert(self, title: str, text: str) -> None:
        self._guarded(lambda run: run.alert(title=title, text=text, level="WARN"))

    def lineage(self, project: str, consumed: Sequence[Path], produced: Sequence[Path]) -> None:
        """References to files and models that the stage was made from and that it made."""

        def send(run: Any) -> None:
            for path in consumed:
                # Offline, W&B cannot look up what another run has logged.
                if run.settings.mode == "online":
                    run.use_artifact(_artifact(project, path))
            for path in produced:
                run.log_artifact(_artifact(project, path))

        self._guarded(send)

    def finish(self, failed: bool) -> None:
        self._guarded(lambda run: run.finish(exit_code=int(failed)))
        self._run = None

    def _start(self, mode: str) -> None:
        try:
            # Before `init`, which prints where it has found the key.
            wandb.setup(settings=wandb.Settings(silent=True))
            self._run = wandb.init(mode=mode, **self._init)  # type: ignore[arg-type]
        except Exception as error:  # the network, the key, its servers, the disk: none of it is worth a run
            _reset()
            if mode == "offline":
                _print(f"W&B cannot start ({_reason(error)}): metrics are in metrics.jsonl only")
                return
            WandbRun._unreachable = True
            self._start("offline")
            if self._run is not None:
                _print(f"W&B cannot be used ({_reason(error)}): recorded offline; {self._how_to_upload()}")

    def _guarded(self, action: Callable[[Any], object]) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:
            _print(
                f"W&B stopped working ({_reason(error)}): metrics go on in metrics.jsonl; "
                f"{self._how_to_upload()}"
            )
            self._run = None
            WandbRun._unreachable = True
            _reset()

    def _how_to_upload(self) -> str:
        folder = Path(self._run.settings.sync_dir)
        return f"upload what it has later: wandb sync {folder}"


def _reset() -> None:
    """Ends W&B's service process, which keeps the ids of runs that failed; it may be gone already."""
    with suppress(Exception):
        wandb.teardown()


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error, limit=160)}"


def _print(message: str) -> None:
    Console(stderr=True).print(message, markup=False, highlight=False, soft_wrap=True)


def _artifact(project: str, path: Path) -> Any:
    kind = "model" if path.is_dir() else "data"
    name = f"{project}-{path.parent.name}-{path.name}"
    # W&B refuses other characters, and longer names, as that of a file "my data.jsonl".
    artifact = wandb.Artifact(re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:128], type=kind)
    artifact.add_reference(path.absolute().as_uri(), checksum=False)
    return artifact


def _cell(value: Any) -> Any:
    """A conversation as text: W&B refuses a column whose values have different keys or types."""
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return value
