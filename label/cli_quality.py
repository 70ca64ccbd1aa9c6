"""`hero label gold` and `hero label stats`: known answers, and whether the labels can be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from label.cli_common import Run, console, open_workplace


def gold(
    run: Run,
    add: Annotated[Path | None, typer.Option(help='JSONL of items, each with "gold": {"ranks", …}.')] = None,
    kind: Annotated[str, typer.Option(help="rank or pair, for --add.")] = "rank",
    retire: Annotated[str | None, typer.Option(help="Take the gold item with this id out of work.")] = None,
    promote: Annotated[str | None, typer.Option(help="Make gold of the suggested item with this id.")] = None,
    why: Annotated[str, typer.Option(help="Explanation of the answer, for --promote.")] = "people agree",
) -> None:
    """List the gold items with how people did on them, and items that could become gold."""
    from label.store.gold_items import list_gold, suggestions
    from label.store.gold_items import promote as make_gold
    from label.store.gold_items import retire as take_out
    from label.store.items import BatchSpec, add_items, read_rows

    workplace = open_workplace(run)
    if add is not None:
        rows = read_rows(add)
        missing = [number for number, row in enumerate(rows, 1) if not row.get("gold")]
        if missing:
            raise typer.BadParameter(f'{add}:{missing[0]}: key "gold" is missing', param_hint="--add")
        added = add_items(workplace.database, BatchSpec(f"gold-{kind}", kind, purpose="gold"), rows, "cli")
        console.print(f"{added.added} gold items added, {added.known} known already", highlight=False)
    with workplace.database.write() as connection:
        if retire is not None:
            take_out(connection, retire, "cli")
        if promote is not None:
            make_gold(connection, promote, why, "cli")
    table = Table("gold item", "prompt", "ranks", "answers", "accuracy", "state")
    with workplace.database.read() as connection:
        for row in list_gold(connection):
            state = "retired" if row["retired"] else "in work"
            fields = (row["gold"], _short(row["prompt"]), row["ranks"], row["answers"])
            table.add_row(*map(str, fields), _interval(row["accuracy"]), state)
        waiting = suggestions(connection)
    console.print(table)
    for row in waiting:
        said = f"{row['labels']} people agree on item {row['item']}: {_short(row['prompt'])}"
        console.print(said, highlight=False)


def stats(run: Run) -> None:
    """Print agreement and strengths of policies, and the figures of each person, with intervals."""
    from label.api.quality import team_figures
    from label.team import team

    workplace = open_workplace(run)
    figures = team_figures(workplace, draws=1000)
    table = Table("figure", "value [95% interval]", "items")
    names = ("agreement", "agreement_with_ties", "tau_b", "alpha_nominal", "alpha_ordinal")
    for name in names:
        table.add_row(name, _interval(figures[name]), str(figures[name]["n"]))
    console.print(f"{figures['rankings']} rankings by {figures['labelers']} people", highlight=False)
    console.print(table)
    _print_policies(figures["policies"])
    with workplace.database.read() as connection:
        rows = team(connection, workplace)
    table = Table("pseudonym", "state", "labels", "gold", "self-agreement", "against it")
    for row in rows:
        look = row["quality"] or {}
        reasons = "; ".join(finding["reason"] for finding in look.get("findings", ()))
        own = (_interval(look.get("gold")), _interval(look.get("self_agreement")))
        table.add_row(row["pseudonym"], row["state"], str(row["labels"]), *own, reasons)
    console.print(table)


def _print_policies(policies: dict[str, Any] | None) -> None:
    if policies is None:
        return
    table = Table("policy", "Bradley-Terry strength [95% interval]")
    for name, figure in policies["bradley_terry"]["strengths"].items():
        table.add_row(name, _interval(figure))
    console.print(table)


def _interval(figure: dict[str, Any] | None) -> str:
    if not figure or figure["value"] is None:
        return "undefined"
    if figure["low"] is None:
        return f"{figure['value']:.3f}"
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def _short(prompt: Any) -> str:
    text = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
    return text if len(text) <= 60 else text[:59] + "…"
