"""What the terminal shows when a run has ended: results by stage, time and memory, and the next
command."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.files import read_json, read_jsonl
from common.run_paths import RoundPaths, RunPaths
from learners.supervised.agreement import described

# Measures of the evaluation that the table leaves out.
HIDDEN = ("count", "ended", "score_error")


def print_summary(root: Path, console: Console) -> None:
    paths = RunPaths(root)
    _print_evaluation(paths, console)
    _print_reward_model(paths, console)
    for alarm in read_jsonl(paths.alarms):
        console.print(f"alarm {alarm['alarm']}: {alarm['evidence']}", markup=False, highlight=False)
    _print_failures(paths, console)
    _print_costs(paths, console)
    if paths.report.exists():
        console.print(f"report: {paths.report}", markup=False, soft_wrap=True)
    # Of a round the gate decides whether its policy is served.
    if paths.current.exists() and not RoundPaths(root).state.exists():
        shown = root
        if root.is_relative_to(Path.cwd()):
            shown = root.relative_to(Path.cwd())
        command = escape(shlex.join(["hero", "serve", str(shown)]))
        hint = f"talk to it: [bold]{command}[/], then [bold]hero chat[/] in another terminal"
        console.print(hint, soft_wrap=True)


def _print_evaluation(paths: RunPaths, console: Console) -> None:
    results = read_json(paths.evaluation)
    if not results:
        return
    console.print(evaluation_table(results))
    if "win_rate" in results:
        wins = results["win_rate"]
        console.print(
            f"{shown_name(wins['challenger'])} preferred to {shown_name(wins['baseline'])} in "
            f"[bold]{wins['rate']:.1%}[/] of {wins['count']} comparisons "
            f"(95% interval {wins['low']:.1%} to {wins['high']:.1%}, ties half)"
        )


def _print_reward_model(paths: RunPaths, console: Console) -> None:
    reward = read_json(paths.stage("reward").done)
    if not reward:
        return
    metrics = reward["results"]
    if "accuracy/truth" in metrics:
        labelers = ""
        collect = read_json(paths.stage("collect").done)
        if collect:
            agreement = collect["results"]["agreement/labelers"]
            labelers = f"; labelers agree with each other in {agreement:.1%}"
        console.print(
            f"reward model: {metrics['accuracy/truth']:.1%} of held-out pairs as the truth, "
            f"{metrics['accuracy/labelers']:.1%} as the labelers{labelers}"
        )
    elif "accuracy/over_length" in metrics:  # not in a run of an older version
        console.print(f"reward model: {described(metrics)}", highlight=False)
    if "folds/accuracy/over_length" in metrics:
        console.print(f"reward model over all folds: {described(metrics, 'folds/')}", highlight=False)


def _print_failures(paths: RunPaths, console: Console) -> None:
    failures = read_jsonl(paths.failures)
    if not failures:
        return
    replaced: dict[str, None] = {}  # a dict keeps the order and names each actor once
    for failure in failures:
        replaced.update(dict.fromkeys(failure["replaced"]))
    console.print(
        f"recovered from {len(failures)} failures (replaced {', '.join(replaced)}); see {paths.failures}",
        highlight=False,
    )


def _print_costs(paths: RunPaths, console: Console) -> None:
    timings = read_json(paths.timings)
    if not timings:
        return
    stages = "  ".join(f"{stage} {seconds:.0f} s" for stage, seconds in timings["stages"].items())
    console.print(f"time: {timings['total_s']:.0f} s in total ({stages})")
    console.print(f"memory: {timings['peak_memory_gib']:.1f} GiB at the peak over all processes")


def evaluation_table(results: dict[str, Any]) -> Table:
    """One row for each policy and temperature, one column for each measure that any of them has."""
    table = Table(title="Held-out prompts", title_justify="left", box=box.SIMPLE, padding=0)
    table.add_column("model")
    table.add_column("decoding")
    # Columns in the order in which measures first appear; a judge's own measures are not known here.
    columns: dict[str, None] = {}
    for decodings in results["stages"].values():
        for measures in decodings.values():
            columns.update(dict.fromkeys(name for name in measures if _is_shown(name)))
    for name in columns:
        # With spaces, a narrow terminal wraps names and not numbers.
        table.add_column(name.removeprefix("episode/").replace("_", " "), justify="right")
    for stage, decodings in results["stages"].items():
        for decoding, measures in decodings.items():
            table.add_row(stage, decoding, *[_cell(name, measures.get(name)) for name in columns])
    return table


def _is_shown(name: str) -> bool:
    if name.startswith("episode/"):  # the report has all of them
        return name == "episode/turns"
    return name not in HIDDEN and "mean@" not in name


def shown_name(model: str) -> str:
    """Of a stage's policy in a sentence."""
    return {"sft": "SFT", "best_of_n": "best of n", "dpo": "DPO", "ppo": "PPO"}.get(model, model)


def is_rate(name: str) -> bool:
    """Whether a measure is a share between 0 and 1."""
    return name in ("factual", "rude", "coherent") or name.startswith("pass@")


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if is_rate(name):
        return f"{value:.1%}"
    return f"{value:.2f}"
