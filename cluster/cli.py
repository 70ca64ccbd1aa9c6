"""The `hero` command."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.errors import FleetError, UserError, is_disk_full

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
    first: Annotated[
        str | None, typer.Option("--from", help="Do this stage and all later ones again.")
    ] = None,
    last: Annotated[str | None, typer.Option("--until", help="Stop after this stage.")] = None,
) -> None:
    """Run the stages of a config in order; run again to continue where it stopped."""
    from cluster.config import load_config
    from cluster.pipeline import run_stages
    from cluster.run.summary import print_summary

    # A job that is stopped gets SIGTERM; it ends as after Ctrl-C, with its checkpoints and W&B runs closed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        finished = run_stages(load_config(config, overrides), first, last)  # type: ignore[arg-type]
    except KeyboardInterrupt:
        _tell("stopped; the same command goes on from the last checkpoint")
        raise typer.Exit(130) from None
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
    from cluster.run.report import write_report

    console.print(f"wrote {write_report(run)}")


RunDir = Annotated[Path, typer.Argument(help="Directory of a run")]
Why = Annotated[str, typer.Option(help="Reason, for the log of promotions.")]


@app.command()
def serve(
    run: Annotated[Path, typer.Argument(help="Directory of a run, or a Hugging Face model folder")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="serve.key=value, for example serve.models.sft.path=sft")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    replicas: Annotated[int | None, typer.Option(help="Copies of the engines.")] = None,
    api_keys: Annotated[Path | None, typer.Option(help="File of API keys, made by `hero key`.")] = None,
) -> None:
    """Serve a run's policy: OpenAI-compatible endpoint, chat page, playground."""
    from cluster.config import load_config
    from learners.data.sources import local_path
    from serve.launch import serve_forever

    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # a service manager's stop ends it as Ctrl-C does
    given = {"host": host, "port": port, "replicas": replicas, "api_keys": api_keys}
    flags = [f"serve.{k}={v}" for k, v in given.items() if v is not None]
    file = run / "config.yaml"
    config = load_config(file if file.exists() else None, [*(overrides or []), *flags])
    if config.data.heldout and not config.serve.canary.file:
        config.serve.canary.file = str(local_path(config.data.heldout[0], config.data) or "")
    serve_forever(run, config.serve, console)


@app.command()
def scale(
    run: RunDir,
    counts: Annotated[list[str], typer.Argument(help="fleet=actors, for example rollout=4 scoring=2")],
) -> None:
    """Change how many rollout or scoring actors a run at work has, until it ends."""
    from cluster.fleets.scale import request_scale

    asked = request_scale(run, counts)
    told = ", ".join(f"{kind} {count}" for kind, count in asked.items())
    console.print(
        f"{run}: asked for {told}; the PPO stage follows between iterations and says so", highlight=False
    )


@app.command()
def key(
    file: Annotated[Path, typer.Argument(help="File of API keys; made if there is none")],
    name: Annotated[str, typer.Argument(help="Whom the key is for")],
) -> None:
    """Make an API key and print it, once; the file keeps its hash. Remove the line to end it."""
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

    _tell_move(promotion.promote(run, version, why))


@app.command()
def rollback(run: RunDir, why: Why = "") -> None:
    """Serve the version from before the present one again, live."""
    from serve import promotion

    _tell_move(promotion.rollback(run, why))


def _tell_move(row: dict[str, Any]) -> None:
    for when, figures in row.get("metrics", {}).items():
        console.print(f"{when:7}" + "  ".join(f"{k} {v:.3g}" for k, v in figures.items()), highlight=False)
    if row["outcome"] != "promoted":
        raise UserError(f"{row['to']}: {row['reason']}; {row['from']} is served on")
    live = (
        f", {row['replicas']} replicas, {row['seconds']:.2f} s"
        if "replicas" in row
        else " (nothing serves this run now)"
    )
    console.print(f"{row['from']} -> [bold]{row['to']}[/]{live}", highlight=False)


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


Address = Annotated[str | None, typer.Option(help="URL of the cluster's dashboard, http://HOST:8265")]
Job = Annotated[str | None, typer.Argument(help="Job id; the newest if left out")]


@app.command()
def submit(
    config: Config,
    overrides: Overrides = None,
    address: Address = None,
    retries: Annotated[
        int, typer.Option(min=0, help="How often a driver that is killed is started again.")
    ] = 3,
) -> None:
    """Submit a run as a Ray job; submitting it again continues it."""
    from cluster import jobs
    from cluster.config import load_config

    identity = jobs.submit(load_config(config, overrides), address, retries)
    console.print(f"submitted [bold]{identity}[/]; watch it with `hero logs -f {identity}`", highlight=False)


@app.command()
def status(address: Address = None) -> None:
    """List the runs submitted to a cluster."""
    from cluster import jobs

    table = Table()
    for name in ("job", "status", "run directory", "message"):
        table.add_column(name)
    for row in jobs.status(address):
        table.add_row(*row)
    console.print(table)


@app.command()
def logs(
    job: Job = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on while the job runs.")] = False,
    address: Address = None,
) -> None:
    """Print the output of a submitted run."""
    from cluster import jobs

    jobs.logs(job, address, follow, console)


@app.command()
def stop(job: Job = None, address: Address = None) -> None:
    """Stop a submitted run; submitting it again continues it."""
    from cluster import jobs

    console.print(f"stopping {jobs.stop(job, address)}")


def main() -> None:
    """Runs a command; what is the user's to mend is told in one message, without a traceback."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        app()
    except (UserError, FleetError) as fault:
        _tell(str(fault))
        sys.exit(2 if isinstance(fault, UserError) else 1)
    except OSError as fault:
        if not is_disk_full(fault):
            raise
        _tell(f"{fault}; make room and run the same command, which goes on from the last checkpoint")
        sys.exit(2)


def _tell(message: str) -> None:
    Console(stderr=True).print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
