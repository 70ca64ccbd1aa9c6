"""The `hero` command."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from learners.errors import UserError

app = typer.Typer(
    help="Take a language model from random weights to a served chat assistant.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()

Config = Annotated[Path, typer.Argument(help="YAML file of the run, for example configs/quickstart.yaml")]
Overrides = Annotated[list[str] | None, typer.Argument(help="dotted.key=value, for example ppo.kl_coef=0.1")]


@app.command()
def run(
    config: Config,
    overrides: Overrides = None,
    first: Annotated[str | None, typer.Option("--from", help="Do this stage and all later ones again.")] = None,
    last: Annotated[str | None, typer.Option("--until", help="Stop after this stage.")] = None,
) -> None:
    """Run the stages of a config in order; run again to continue where it stopped."""
    from cluster.config import load_config
    from cluster.pipeline import run_stages
    from cluster.summary import print_summary

    finished = run_stages(load_config(config, overrides), first, last)  # type: ignore[arg-type]
    print_summary(finished.root, console)


@app.command()
def plan(config: Config, overrides: Overrides = None) -> None:
    """Start nothing; print the resolved config, the batch arithmetic, the placement and the memory estimate."""
    from cluster.config import load_config
    from cluster.plan import print_plan

    print_plan(load_config(config, overrides), console)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Directory of a run")]) -> None:
    """Write the run's HTML report."""
    from cluster.report import write_report

    console.print(f"wrote {write_report(run)}")


def main() -> None:
    """Runs a command; what is the user's to mend is told in one message, without a traceback."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        app()
    except UserError as fault:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(fault))}", highlight=False, soft_wrap=True)
        sys.exit(2)


def escape(text: str) -> str:
    from rich.markup import escape as rich_escape

    return rich_escape(text)


if __name__ == "__main__":
    main()
