"""What the modules of `hero`'s commands share: the terminal and arguments of several commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console()


def current_layout(folder: Path) -> Path:
    """Refuses a run directory of an older version, for every command that reads one."""
    from common.run_paths import RunPaths

    RunPaths(folder).check_layout()
    return folder


Config = Annotated[Path, typer.Argument(help="YAML file of the run, for example configs/quickstart.yaml")]
Overrides = Annotated[list[str] | None, typer.Argument(help="dotted.key=value, for example ppo.kl_coef=0.1")]
RunDir = Annotated[Path, typer.Argument(help="Directory of a run", callback=current_layout)]
