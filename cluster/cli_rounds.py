"""`hero rounds`: new labels, new reward model, new policy, again."""

from __future__ import annotations

import getpass
from typing import Annotated, Any

import typer
import typer.core

from cluster.cli_common import Config, Overrides, RunDir, console

Why = Annotated[str, typer.Option(help="Reason, which stays with the round.")]


class _ConfigFirst(typer.core.TyperGroup):
    """`hero rounds CONFIG` is `hero rounds run CONFIG`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["run", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_ConfigFirst,
    help="New labels, new reward model, new policy, again: hero rounds CONFIG key=value …",
    no_args_is_help=True,
    add_completion=False,
)


@app.command()
def run(
    config: Config,
    overrides: Overrides = None,
    until: Annotated[int | None, typer.Option(min=1, help="Stop after this round.")] = None,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="End with code 0 where people have to label first.")
    ] = False,
    retries: Annotated[
        int, typer.Option(min=0, help="How often to start stages again when they fail or are killed.")
    ] = 0,
) -> None:
    """Run the rounds of a config, and wait for people; run again to continue."""
    from cluster.config_loader import load_config
    from cluster.rounds.controller import Rounds, Waiting
    from cluster.rounds.report import print_rounds
    from cluster.rounds.stages import StageProcess
    from cluster.supervisor import interrupt_on_signals
    from common.errors import INTERRUPTED

    settings = load_config(config, overrides)
    interrupt_on_signals()
    rounds = Rounds(settings, StageProcess(retries, _print), _print, wait=not no_wait)
    try:
        rounds.go(until)
        print_rounds(settings.directory, console)
        _print(f"`hero serve {settings.directory}` serves what is promoted, or else the SFT policy")
    except Waiting as waiting:
        _print(f"{waiting}; the same command goes on when they are there")
    except KeyboardInterrupt:
        _print("stopped; the same command goes on from here")
        raise typer.Exit(INTERRUPTED) from None


@app.command()
def status(run: RunDir) -> None:
    """Show every round: state, labels, accuracies, win rate, decision."""
    from cluster.rounds.report import print_rounds

    print_rounds(run, console)


@app.command()
def close(run: RunDir, why: Why = "") -> None:
    """End the labelling, or the comparisons, of the round at work with the labels that are there."""
    from cluster.rounds.requests import close_round

    _print(close_round(run, why))


@app.command()
def hold(run: RunDir, why: Why) -> None:
    """Keep the policy of the round at work from being served, whatever its gate says."""
    from cluster.rounds.requests import hold_round

    _print(hold_round(run, why))


@app.command()
def promote(run: RunDir, why: Why) -> None:
    """Serve the policy of the last round although its gate has held it; the canary tries it all the same."""
    from cluster.rounds.requests import promote_round

    _print(promote_round(run, why))


@app.command()
def stop(run: RunDir, why: Why) -> None:
    """Stop training after the present iteration, until `hero rounds resume`."""
    from common.run_paths import RunPaths
    from common.stop_request import request_stop

    request = request_stop(RunPaths(run), getpass.getuser(), why)
    _print(f"{run}: training stops after the present iteration ({request['who']}: {request['why']})")


@app.command()
def resume(run: RunDir) -> None:
    """Take a request to stop back; `hero rounds CONFIG` then continues."""
    from cluster.rounds.requests import resume_rounds

    _print(resume_rounds(run))


def _print(line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def add_commands(parent: typer.Typer) -> None:
    parent.add_typer(app, name="rounds")
