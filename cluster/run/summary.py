"""What the terminal shows when a run has ended: results by stage, where time and memory went, what to type next."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from common.files import read_json, read_jsonl

HIDDEN = ("count", "ended", "score_error")  # in results.json


def print_summary(root: Path, console: Console) -> None:
    results = read_json(root / "evaluate" / "results.json")
    if results:
        console.print(evaluation_table(results))
        if "win_rate" in results:
            won = results["win_rate"]
            console.print(
                f"PPO preferred to SFT in [bold]{won['rate']:.1%}[/] of {won['count']} comparisons "
                f"(95% interval {won['low']:.1%} to {won['high']:.1%}, ties half)"
            )
    reward = read_json(root / "reward" / "done.json")
    collect = read_json(root / "collect" / "done.json")
    if reward and "accuracy/truth" in reward["results"]:
        between = (
            f"; labelers agree with each other in {collect['results']['agreement/labelers']:.1%}"
            if collect
            else ""
        )
        found = reward["results"]
        console.print(
            f"reward model: {found['accuracy/truth']:.1%} of held-out pairs as the truth, "
            f"{found['accuracy/labelers']:.1%} as the labelers{between}"
        )
    for alarm in read_jsonl(root / "ppo" / "alarms.jsonl"):
        console.print(f"alarm {alarm['alarm']}: {alarm['evidence']}", markup=False, highlight=False)
    if reward and "folds/accuracy/labelers" in reward["results"]:
        rate, low, high, alone = (
            reward["results"][f"folds/accuracy/{name}"] for name in ("labelers", "low", "high", "length_only")
        )
        console.print(
            f"reward model over all folds: {rate:.1%} of {reward['results']['folds/pairs']:.0f} held-out pairs as the labelers "
            f"(95% interval {low:.1%} to {high:.1%}); length alone {alone:.1%}"
        )
    if faults := read_jsonl(root / "failures.jsonl"):
        lost = ", ".join(dict.fromkeys(name for fault in faults for name in fault["lost"]))
        console.print(
            f"survived: {len(faults)} faults ({lost} started anew); see {root / 'failures.jsonl'}",
            highlight=False,
        )
    timings = read_json(root / "timings.json")
    if timings:
        spent = "  ".join(f"{stage} {seconds:.0f} s" for stage, seconds in timings["stages"].items())
        console.print(f"time: {timings['total_s']:.0f} s in all ({spent})")
        console.print(f"memory: {timings['peak_memory_gib']:.1f} GiB at the peak over all processes")
    if (root / "report.html").exists():
        console.print(f"report: {root / 'report.html'}")
    if (root / "current.json").exists():
        shown = root.relative_to(Path.cwd()) if root.is_relative_to(Path.cwd()) else root
        console.print(f"talk to it: [bold]hero serve {shown}[/], then [bold]hero chat[/] in another terminal")


def evaluation_table(results: dict) -> Table:
    """One row for each model and way of decoding."""
    table = Table(title="Held-out prompts", title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("model")
    table.add_column("decoding")
    found = [(stage, way, rates) for stage, ways in results["stages"].items() for way, rates in ways.items()]
    columns = list(
        dict.fromkeys(
            name for *_, rates in found for name in rates if name not in HIDDEN and "mean@" not in name
        )
    )
    for name in columns:
        table.add_column(name, justify="right")
    for stage, decoding, rates in found:
        cells = [
            "" if rates.get(c) is None else f"{rates[c]:.1%}" if is_rate(c) else f"{rates[c]:.2f}"
            for c in columns
        ]
        table.add_row(stage, decoding, *cells)
    return table


def is_rate(name: str) -> bool:
    """Whether a measure is a share between 0 and 1."""
    return name in ("factual", "rude", "coherent") or name.startswith("pass@")
