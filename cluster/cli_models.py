"""Commands of `hero` that take models from other programs and give them to others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.cli_common import console


def import_model(
    source: Annotated[
        str,
        typer.Argument(help="GGUF file, Hugging Face folder, or installed package that carries a GGUF file"),
    ],
    out: Annotated[Path, typer.Argument(help="Folder to write; it must not exist")],
    dtype: Annotated[str, typer.Option(help="Precision of the weights: float32 or bfloat16.")] = "float32",
    chat_template: Annotated[
        Path | None,
        typer.Option(help="Jinja file, for a model without a chat template or in place of its own."),
    ] = None,
) -> None:
    """Make a Hugging Face folder of a model that another program wrote, for every stage and `hero serve`."""
    from cluster.interchange.importing import import_model as run

    imported = run(source, out, dtype, chat_template)
    size = f"{imported.parameters / 1e6:.1f} million parameters"
    console.print(
        f"wrote {out}: {imported.architecture} with {size}, {imported.dtype}, from {imported.stored_as}; end "
        f"token {imported.end_token}, pad token {imported.pad_token}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    for note in imported.notes:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"next: hero serve {out}, or model.path={out} in a config", highlight=False, soft_wrap=True)


def export_model(
    run: Annotated[Path, typer.Argument(help="Directory of a run, or a Hugging Face folder")],
    out: Annotated[Path, typer.Argument(help="Folder to write; it must not exist")],
    version: Annotated[
        str | None,
        typer.Option(help="Version or stage, for example ppo-20 or sft; the served one if left out."),
    ] = None,
    gguf: Annotated[bool, typer.Option("--gguf", help="One file for llama.cpp and Ollama.")] = False,
    precision: Annotated[str, typer.Option(help="With --gguf: f32, f16, bf16 or q8_0.")] = "f32",
) -> None:
    """Copy a run's policy with a card made from the run's own facts, as a folder or as a GGUF file."""
    from cluster.interchange.exporting import export_model as export

    path = export(run, out, version, gguf, precision)
    console.print(f"wrote {path}, and its card {out / 'README.md'}", highlight=False, soft_wrap=True)
    use = f"llama-cli -m {path}" if gguf else f"hero serve {out}"
    console.print(f"next: {use}", highlight=False, soft_wrap=True)


def add_commands(app: typer.Typer) -> None:
    app.command("import")(import_model)
    app.command("export")(export_model)
