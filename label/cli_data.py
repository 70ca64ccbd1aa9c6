"""`hero label export` and `hero label import`: labels to and from files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from label.cli_common import Run, console, open_workplace

FORMATS = "jsonl, hub, label-studio, argilla, csv, arena, anthropic or oasst (docs/label-formats.md)."


def export(
    run: Run,
    name: Annotated[str, typer.Option(help="Name of the files in RUN/label/exports.")] = "labels",
    group: Annotated[list[str] | None, typer.Option(help="Groups of people; training and simulated.")] = None,
    batch: Annotated[list[str] | None, typer.Option(help="Batches by name; all for training.")] = None,
    format: Annotated[str, typer.Option(help=f"Also in this format: {FORMATS}")] = "jsonl",
) -> None:
    """Write the labels as rows that training reads, and in another program's format beside them."""
    from label.export import TRAINING_GROUPS, write_export
    from label.formats.registry import export_format

    workplace = open_workplace(run)
    chosen = export_format(format)
    description = write_export(
        workplace.database, workplace.exports, name, group or TRAINING_GROUPS, batch or []
    )
    for file, figures in description["files"].items():
        console.print(f"{workplace.exports / file}: {figures['rows']} rows", highlight=False, soft_wrap=True)
    console.print(
        f"{description['held_back']} labels held back, {description['rejected']} rejected by reviewers",
        highlight=False,
    )
    if format != "jsonl" and f"{name}.jsonl" in description["files"]:
        path = workplace.exports / f"{name}{chosen.suffix}"
        counts = chosen.convert(workplace.exports / f"{name}.jsonl", path)
        said = ", ".join(f"{count} {what}" for what, count in counts.items())
        console.print(f"{path}: {said}", highlight=False, soft_wrap=True)


def import_(
    run: Run,
    file: Annotated[Path, typer.Argument(help="File or folder")],
    batch: Annotated[str, typer.Option(help="Name of the batch; made if there is none.")],
    format: Annotated[str, typer.Option(help=FORMATS)] = "jsonl",
    kind: Annotated[str, typer.Option(help="rank, or pair for items of two responses.")] = "rank",
    overlap: Annotated[
        int | None, typer.Option(min=1, help="Labels of different people for each item.")
    ] = None,
    max_invalid: Annotated[int, typer.Option(min=0, help="Invalid entries that are left out.")] = 0,
) -> None:
    """Read items and labels of another program. Imported people are in screening until an owner admits
    them; a label that is known already is left out."""
    from label.importing import import_file
    from label.store.items import BatchSpec

    workplace = open_workplace(run)
    spec = BatchSpec(batch, kind, overlap or workplace.settings.overlap)
    counts = import_file(workplace.database, file, format, spec, max_invalid)
    said = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    console.print(f"{batch}: {said or 'nothing'}", highlight=False, soft_wrap=True)
