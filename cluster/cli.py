"""The `hero` command.

Each command imports what it needs when it is called, so that `hero --help` and `hero plan` answer at once.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from cluster.cli_common import Config, Overrides, RunDir, console, current_layout
from cluster.cli_jobs import add_commands as add_job_commands
from cluster.cli_models import add_commands as add_model_commands
from cluster.cli_rounds import add_commands as add_rounds_commands
from common.errors import INTERRUPTED, DiskFullError, HeroError, UserError, is_disk_full

app = typer.Typer(
    help="Take a language model from random weights to a served chat assistant.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# Errors of files whose permissions or place the user can correct.
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR)

EXIT_CODES = (
    "Exit codes: 0 finished. 1 an actor or the program failed. 2 wrong input. 3 stopped by a rule of the "
    "config (alarms.stop, rewards.quarantine_share). 4 disk full. 5 engines and learners hold different "
    "weights. 130 stopped by Ctrl-C or SIGTERM. 128+N ended by signal N. "
    "With --retries the run is started again after codes 1, 4, 5 and 128+N."
)


Why = Annotated[str, typer.Option(help="Reason, for the log of promotions.")]


@app.command(epilog=EXIT_CODES)
def run(
    config: Config,
    overrides: Overrides = None,
    first: Annotated[
        str | None, typer.Option("--from", help="Do this stage and all later ones again.")
    ] = None,
    last: Annotated[str | None, typer.Option("--until", help="Stop after this stage.")] = None,
    retries: Annotated[
        int, typer.Option(min=0, help="How often to start the run again when it fails or is killed.")
    ] = 0,
) -> None:
    """Run the stages of a config in order; run again to continue where it stopped."""
    from cluster.config_loader import load_config

    settings = load_config(config, overrides)
    if retries:
        raise typer.Exit(_run_with_retries(settings, [str(config), *(overrides or [])], first, last, retries))
    from cluster.run.summary import print_summary
    from cluster.supervisor import interrupt_on_signals

    # A Ray job, a service manager and a container are stopped with SIGTERM.
    interrupt_on_signals()
    try:
        from cluster.pipeline import run_stages  # takes seconds, in which Ctrl-C may come too

        finished = run_stages(settings, first, last)
    except KeyboardInterrupt:
        print_error("stopped; the same command continues from the last checkpoint")
        raise typer.Exit(INTERRUPTED) from None
    print_summary(finished.root, console)


def _run_with_retries(
    settings: Any, arguments: list[str], first: str | None, last: str | None, retries: int
) -> int:
    """Runs `hero run` as a child process under a supervisor; returns its exit code."""
    from cluster.plan import check_feasible, check_stage_option
    from cluster.precision import resolve
    from cluster.run.directory import RunDirectory
    from cluster.supervisor import Supervisor

    if first:
        # Once and here: a retry with --from would discard what the attempt before has finished.
        check_stage_option(settings, "--from", first)
        settings, _ = resolve(settings, redo=first)
        check_feasible(settings)
        directory = RunDirectory(settings)
        directory.open(redo=first)
        directory.close()
    command = [sys.executable, "-m", "cluster.cli", "run", *arguments]
    if last:
        command += ["--until", last]
    return Supervisor(command, retries, print_error).run()


@app.command()
def plan(config: Config, overrides: Overrides = None) -> None:
    """Start nothing; print the resolved config, the batch arithmetic, the placement and the memory
    estimate."""
    from cluster.config_loader import load_config
    from cluster.plan import print_plan

    print_plan(load_config(config, overrides), console)


@app.command()
def report(run: RunDir) -> None:
    """Write the run's HTML report."""
    from cluster.run.report import write_report

    console.print(f"wrote {write_report(run)}")


@app.command()
def serve(
    run: Annotated[
        Path,
        typer.Argument(help="Directory of a run, or a Hugging Face model folder", callback=current_layout),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="serve.key=value, for example serve.models.sft.path=sft")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    replicas: Annotated[int | None, typer.Option(help="Copies of the engines.")] = None,
    api_keys: Annotated[Path | None, typer.Option(help="File of API keys, made by `hero key`.")] = None,
) -> None:
    """Serve a run's policy: OpenAI-compatible endpoint, chat page, playground."""
    from cluster.config_loader import load_config
    from cluster.config_paths import absolute_paths
    from common.run_paths import RunPaths
    from serve.canary_prompts import canary_prompts
    from serve.launch import serve_forever

    # A service manager stops a server with SIGTERM; it ends as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    keys = api_keys.absolute() if api_keys else None
    options = {"host": host, "port": port, "replicas": replicas, "api_keys": keys}
    # Quoted: `::` would be a mapping in YAML.
    given = {name: value for name, value in options.items() if value is not None}
    settings = [f"serve.{name}={json.dumps(value, default=str)}" for name, value in given.items()]
    paths = RunPaths(run)
    config = load_config(paths.config if paths.layout.exists() else None, [*(overrides or []), *settings])
    serving = absolute_paths(config, paths.started_in()).serve
    # Read here too, so that whoever serves a run that was moved knows before the first promotion.
    if paths.current.exists() and (note := canary_prompts(serving.canary, run).note):
        console.print(f"promotions: {note}", highlight=False, markup=False, soft_wrap=True)
    serve_forever(run, serving, console)


@app.command()
def scale(
    run: RunDir,
    counts: Annotated[list[str], typer.Argument(help="fleet=actors, for example rollout=4 scoring=2")],
) -> None:
    """Change how many rollout or scoring actors a run at work has, until it ends."""
    from cluster.fleets.scale import request_scale

    requests = request_scale(run, counts)
    sizes = ", ".join(f"{kind} {count}" for kind, count in requests.items())
    console.print(
        f"{run}: requested {sizes}; the PPO stage applies this between iterations and reports it",
        highlight=False,
    )


@app.command()
def key(
    file: Annotated[Path, typer.Argument(help="File of API keys; created if there is none")],
    name: Annotated[str, typer.Argument(help="Who uses the key")],
) -> None:
    """Make an API key and print it, once; the file keeps its hash. Remove the line to revoke it."""
    from serve.keys import add_key

    print(add_key(file, name))


@app.command()
def promote(
    run: RunDir,
    version: Annotated[str | None, typer.Argument(help="For example ppo-20; the newest if left out")] = None,
    why: Why = "",
) -> None:
    """Serve another version, live: one replica tries it first, then the others follow."""
    from serve import promotion

    print_promotion(promotion.promote(run, version, why))


@app.command()
def rollback(run: RunDir, why: Why = "") -> None:
    """Serve the previous version again, live."""
    from serve import promotion

    print_promotion(promotion.rollback(run, why))


def print_promotion(row: dict[str, Any]) -> None:
    """Prints a row of the log of promotions; raises UserError if the version was refused."""
    for phase, figures in row.get("metrics", {}).items():
        line = "  ".join(f"{name} {value:.3g}" for name, value in figures.items())
        console.print(f"{phase:7}{line}", highlight=False)
    if "note" in row:
        console.print(row["note"], highlight=False, markup=False, soft_wrap=True)
    if row["outcome"] != "promoted":
        raise UserError(f"{row['to']}: {row['reason']}; {row['from']} is still served")
    endpoint = " (nothing serves this run now)"
    if "replicas" in row:
        endpoint = f", {row['replicas']} replicas, {row['seconds']:.2f} s"
    console.print(f"{row['from']} -> [bold]{row['to']}[/]{endpoint}", highlight=False)


@app.command()
def chat(
    url: Annotated[str, typer.Argument(help="Base URL of the endpoint")] = "http://127.0.0.1:8000/v1",
    model: Annotated[str | None, typer.Option(help="Served model name; the first one if left out.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    temperature: Annotated[float, typer.Option(help="Sampling temperature; 0 is greedy.")] = 0.7,
) -> None:
    """Chat with a served policy in the terminal."""
    from serve.chat import chat as talk

    talk(url, model, system, temperature, console)


add_job_commands(app)
add_model_commands(app)
add_rounds_commands(app)


def _add_label_commands() -> None:
    """The sub-commands of `hero label`; their module imports what it needs when they are called."""
    from label.cli import app as label_app

    app.add_typer(label_app, name="label")


_add_label_commands()


def main() -> None:
    """Runs a command. The errors of `common.errors` are printed as one message, with their exit code."""
    from common.network import bypass_proxies_for_loopback

    bypass_proxies_for_loopback()
    # Before any import of huggingface_hub, which reads it once.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        app()
    except HeroError as error:
        print_error(str(error))
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno in NOT_WRITABLE:
            print_error(f"{error.filename}: {error.strerror}; hero needs to read and write there")
            sys.exit(UserError.exit_code)
        if not is_disk_full(error):
            raise
        print_error(
            f"{error}; free some space and run the same command, which continues from the last checkpoint"
        )
        sys.exit(DiskFullError.exit_code)


def print_error(message: str) -> None:
    Console(stderr=True).print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
