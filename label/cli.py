"""`hero label`: the owner's commands. They work on the database directly, also while the server runs."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from label.cli_common import Overrides, Person, Run, Why, console, open_workplace
from label.cli_data import export, import_
from label.cli_quality import gold, stats

app = typer.Typer(
    help="A workplace where people rate, rank and write responses.",
    no_args_is_help=True,
    add_completion=False,
)


@app.command()
def serve(run: Run, overrides: Overrides = None) -> None:
    """Serve the workplace's pages and API until Ctrl-C."""
    from label.server import serve_forever

    # A service manager stops a server with SIGTERM; it ends as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    serve_forever(open_workplace(run, overrides), console)


@app.command()
def invite(
    run: Run,
    role: Annotated[str, typer.Option(help="labeler, reviewer or owner.")] = "labeler",
    group: Annotated[str, typer.Option(help="training, heldout, simulated or public.")] = "training",
    uses: Annotated[int, typer.Option(min=1, help="How many people may use the link.")] = 1,
) -> None:
    """Make an invite link and print it, once."""
    from label.store.people import create_invite

    workplace = open_workplace(run)
    with workplace.database.write() as connection:
        code = create_invite(connection, role, group, uses)
    print(f"{workplace.url}/join#{code}")


@app.command()
def people(
    run: Run,
    key: Annotated[
        str | None, typer.Option(help="Make an API key for this person and print it, once.")
    ] = None,
) -> None:
    """List the people, their states and their labels."""
    from label.store.people import create_key, list_people, resolve

    workplace = open_workplace(run)
    if key is not None:
        with workplace.database.write() as connection:
            print(create_key(connection, resolve(connection, key)))
        return
    table = Table("name", "pseudonym", "role", "group", "state", "labels", "why")
    with workplace.database.read() as connection:
        for row in list_people(connection):
            fields = (row["name"], row["pseudonym"], row["role"], row["grp"], row["state"], row["labels"])
            table.add_row(*(str(value) for value in fields), row["state_why"])
    console.print(table)


@app.command()
def admit(run: Run, person: Person, why: Why = "") -> None:
    """Admit a person, or end a pause."""
    _set_state(run, person, "admitted", why)


@app.command()
def pause(run: Run, person: Person, why: Why = "paused by the owner") -> None:
    """Pause a person: no new work, and the labels are held back from exports."""
    _set_state(run, person, "paused", why)


@app.command()
def reject(run: Run, person: Person, why: Why = "not admitted") -> None:
    """Reject a person; the labels stay and are held back from exports."""
    _set_state(run, person, "rejected", why)


def _set_state(run: Path, name: str, state: str, why: str) -> None:
    from label.store.people import resolve, set_state

    with open_workplace(run).database.write() as connection:
        set_state(connection, resolve(connection, name), state, "cli", why)
    console.print(f"{name}: {state}", highlight=False)


@app.command()
def forget(
    run: Run,
    person: Person,
    void_labels: Annotated[
        bool, typer.Option("--void-labels", help="Make the labels void too; their items are labelled again.")
    ] = False,
) -> None:
    """Remove a person's name, answers, sessions and keys for good."""
    from label.store.people import forget as remove
    from label.store.people import resolve

    with open_workplace(run).database.write() as connection:
        voided = remove(connection, resolve(connection, person), not void_labels, "cli")
    console.print(f"{person}: forgotten, {voided} labels void", highlight=False)


@app.command()
def add(
    run: Run,
    file: Annotated[Path, typer.Argument(help="JSONL: a prompt and its responses in each line")],
    batch: Annotated[str, typer.Option(help="Name of the batch; made if there is none.")],
    kind: Annotated[str, typer.Option(help="rank, pair or demonstrate.")] = "rank",
    overlap: Annotated[
        int | None, typer.Option(min=1, help="Labels of different people for each item.")
    ] = None,
    purpose: Annotated[str, typer.Option(help="train, ab, calibration, gold or demonstrate.")] = "train",
    priority: Annotated[int, typer.Option(help="Higher ones are given first.")] = 0,
) -> None:
    """Add items to a batch, for example RUN/collect/responses.jsonl; adding a file again adds nothing."""
    from label.store.items import BatchSpec, add_items, read_rows

    workplace = open_workplace(run)
    spec = BatchSpec(batch, kind, overlap or workplace.settings.overlap, purpose, priority=priority)
    added = add_items(workplace.database, spec, read_rows(file))
    console.print(
        f"{batch}: {added.added} items added, {added.known} known already, {added.leaks} void since a "
        f"response names its policy, {added.replaced} characters replaced",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def batches(
    run: Run,
    close: Annotated[str | None, typer.Option(help="Close the batch with this name.")] = None,
    reopen: Annotated[str | None, typer.Option(help="Open it again.")] = None,
) -> None:
    """List the batches with their progress."""
    from label.store.batches import list_batches, set_batch_state

    workplace = open_workplace(run)
    for name, state in ((close, "closed"), (reopen, "open")):
        if name:
            with workplace.database.write() as connection:
                ids = {row["name"]: row["id"] for row in list_batches(connection)}
                set_batch_state(connection, ids.get(name, name), state, "cli")
    table = Table("batch", "kind", "purpose", "state", "items", "open", "labels", "at work")
    with workplace.database.read() as connection:
        for row in list_batches(connection):
            fields = ("name", "kind", "purpose", "state", "items", "open_items", "labels", "leases")
            table.add_row(*(str(row[field]) for field in fields))
    console.print(table)


@app.command()
def simulate(
    run: Run,
    labelers: Annotated[int, typer.Option(min=1, help="How many people join.")] = 8,
    error: Annotated[float, typer.Option(min=0, max=1, help="Share of responses they misjudge.")] = 0.22,
    behaviour: Annotated[str, typer.Option(help="honest, random, first or longest.")] = "honest",
    quality: Annotated[
        str | None, typer.Option(help="module:function (prompt, response) -> quality from 0 to 1.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of what they do.")] = 0,
    screening: Annotated[
        bool, typer.Option("--screening", help="They answer the questionnaire; who passes is admitted.")
    ] = False,
) -> None:
    """Let simulated people join the running server and label until nothing waits."""
    from common.plugins import load_function
    from label.simulate import make_people, text_quality, work_together
    from label.simulated_team import admit_all, screen_all

    workplace = open_workplace(run)
    function = text_quality
    if quality is not None:
        function = load_function(quality, "--quality", "prompt", "response")
    address = f"http://{workplace.settings.host}:{workplace.settings.port}"
    settings = {"behaviour": behaviour, "error_rate": error, "quality": function}
    people = make_people(address, labelers, seed, **settings)
    if screening:
        people = screen_all(workplace, people)
        console.print(f"{len(people)} of {labelers} people admitted", highlight=False)
    else:
        admit_all(workplace, people)
    work_together(people)
    paused = sum(bool(one.stopped) for one in people)
    console.print(f"{sum(len(one.acknowledged) for one in people)} labels, {paused} stopped", highlight=False)


@app.command()
def backup(run: Run, file: Annotated[Path, typer.Argument(help="The copy")]) -> None:
    """Copy the SQLite database, also while the workplace is in use."""
    open_workplace(run).database.backup(file)
    console.print(f"wrote {file}", highlight=False)


app.command()(export)
app.command("import")(import_)
app.command()(gold)
app.command()(stats)
