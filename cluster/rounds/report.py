"""`hero rounds status`: all rounds side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster.rounds import labels
from cluster.rounds.flags import flagged_accuracy
from cluster.rounds.state import RoundState
from common.errors import UserError
from common.files import read_jsonl
from common.run_paths import RunPaths, stalled_key
from common.stop_request import stop_request
from label.workplace import Workplace, read_settings

Values = Mapping[str, Any]


def print_rounds(root: Path, console: Console) -> None:
    """Raises UserError if no round was started."""
    run = RunPaths(root)
    states = [RoundState(run, int(paths.root.name)) for paths in run.started_rounds()]
    if not states:
        raise UserError(f"{root}: no round was started here; `hero rounds CONFIG` starts one")
    table = Table("", *[f"round {state.number}" for state in states])
    for name, cell in ROWS.items():
        table.add_row(name, *[cell(state.values) for state in states])
    console.print(table)
    newest = states[-1]
    waiting = {"labeling": labels.batch_names, "trained": labels.comparison_names}.get(newest.state or "")
    if waiting:
        place = Workplace(root, read_settings(root))
        progress = labels.progress(place, waiting(newest.number))
        place.database.close()
        # The interim win rate is not shown: whoever looks at it again and again will see what he hopes for.
        text = f"{progress.labels} of {progress.wanted} labels are there"
        if stalled_key(newest.number, newest.state) in {row["key"] for row in read_jsonl(run.rounds_log)}:
            text += "; stalled: the deadline has passed with too few of them"
        console.print(text, highlight=False)
    request = stop_request(run)
    if request:
        console.print(f"stopped by {request['who']}: {request['why']}", highlight=False, markup=False)


def _state(values: Values) -> str:
    return str(values["state"])


def _policies(values: Values) -> str:
    return ", ".join(values.get("policies", ()))


def _chosen(values: Values) -> str:
    selection = values.get("selection") or values.get("select") or {}
    why = selection.get("why")
    return f"{selection.get('method', '')}; {why}" if why else str(selection.get("method", ""))


def _selection_gain(values: Values) -> str:
    gain = values.get("selection_gain")
    return "" if not gain else f"{_estimate(gain['difference'])}, {gain['labels']} labels each"


def _labels(values: Values) -> str:
    if "labels" not in values:
        return ""
    found = values["labels"]
    late = f", {found['late']} late for earlier rounds" if found.get("late") else ""
    return f"{found['rankings']} by {found['people']}, {found['person_hours']:.1f} h{late}"


def _estimate(value: Values | None) -> str:
    if not value:
        return ""
    if value["value"] is None:
        return f"undefined: {value['why']}"
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}] n {value['n']}"


def _accuracy(values: Values) -> str:
    rates = values.get("reward_model") or {}
    shown = []
    for name in ("accuracy/labelers", "accuracy/truth"):
        if name in rates:
            shown.append(f"{name.removeprefix('accuracy/')} {rates[name]:.3f}")
    return ", ".join(shown)


def _flagged(values: Values) -> str:
    found = flagged_accuracy(values.get("matrix"))
    return "" if not found else f"{found['value']:.3f} of {found['pairs']} pairs"


def _kl(values: Values) -> str:
    kl = (values.get("ppo") or {}).get("objective/kl")
    return "" if kl is None else f"{kl:.2f} of {values.get('kl_limit')}"


def _win_rate(values: Values) -> str:
    gate = values.get("gate")
    return "" if not gate else f"{_estimate(gate['win_rate'])} over {gate['against']}"


def _anchor(values: Values) -> str:
    return _estimate(values.get("anchor"))


ROWS = {
    "state": _state,
    "responses of": _policies,
    "prompts chosen": _chosen,
    "gain of chosen over random": _selection_gain,
    "rankings": _labels,
    "agreement": lambda values: _estimate(values.get("agreement")),
    "reward model": _accuracy,
    "on what people flagged": _flagged,
    "KL, nats": _kl,
    "blind win rate": _win_rate,
    "win rate over SFT": _anchor,
    "decision": lambda values: str(values.get("decision", "")),
}
