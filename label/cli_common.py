"""What the modules of `hero label` share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from label.workplace import Workplace

console = Console()
Run = Annotated[Path, typer.Argument(help="Directory of a run; the workplace is in RUN/label")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value of section label, for example port=8101")
]
Person = Annotated[str, typer.Argument(help="Id, pseudonym or name")]
Why = Annotated[str, typer.Option(help="Reason; the person is told, and it is kept with the decision.")]


def open_workplace(run: Path, overrides: list[str] | None = None) -> Workplace:
    from label.workplace import Workplace

    return Workplace.open(run, overrides or [])
