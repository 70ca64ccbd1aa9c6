"""Commands of `hero` for runs that are jobs of a Ray cluster, and for the logs of all runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.cli_common import Config, Overrides, console, current_layout

Address = Annotated[str | None, typer.Option(help="URL of the cluster's dashboard, http://HOST:8265")]
Job = Annotated[str | None, typer.Argument(help="Job id; the newest if left out")]


def submit(
    config: Config,
    overrides: Overrides = None,
    address: Address = None,
    retries: Annotated[
        int, typer.Option(min=0, help="How often to start the driver again when it fails or is killed.")
    ] = 3,
    rounds: Annotated[bool, typer.Option("--rounds", help="As `hero rounds` instead of `hero run`.")] = False,
) -> None:
    """Submit a run as a Ray job; submitting it again continues it."""
    from cluster import jobs
    from cluster.config_loader import load_config

    command = "rounds run" if rounds else "run"
    identity = jobs.submit(load_config(config, overrides), address, retries, command)
    console.print(f"submitted [bold]{identity}[/]; watch it with `hero logs -f {identity}`", highlight=False)


def status(address: Address = None) -> None:
    """List the runs submitted to a cluster."""
    from rich.table import Table

    from cluster import jobs

    table = Table()
    for name in ("job", "status", "run directory", "message"):
        table.add_column(name)
    for row in jobs.status(address):
        table.add_row(*row)
    console.print(table)


def logs(
    target: Annotated[
        str | None, typer.Argument(help="Directory of a run, or job id; the newest job if left out")
    ] = None,
    actor: Annotated[
        str | None,
        typer.Argument(help="With a directory: whose log, for example rollout-0; a list if left out"),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue while it runs.")] = False,
    address: Address = None,
) -> None:
    """Print the output of a submitted run, or what the actors of a run print on any host."""
    if target and Path(target).is_dir():
        from cluster.run.logs import list_logs, print_log

        if actor is None:
            list_logs(current_layout(Path(target)), console)
        else:
            print_log(current_layout(Path(target)), actor, follow, console)
        return
    from cluster import jobs

    jobs.logs(target, address, follow, console)


def stop(job: Job = None, address: Address = None) -> None:
    """Stop a submitted run; submitting it again continues it."""
    from cluster import jobs

    console.print(f"stopping {jobs.stop(job, address)}")


def add_commands(app: typer.Typer) -> None:
    for command in (submit, status, logs, stop):
        app.command()(command)
