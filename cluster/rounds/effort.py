"""What a round asks of people, for `hero plan`."""

from __future__ import annotations

import statistics

from cluster.config import RunConfig
from cluster.rounds.selection import method_of
from common.files import read_jsonl
from common.run_paths import RunPaths


def round_effort(config: RunConfig) -> list[tuple[str, str]]:
    """(quantity, calculation). Hours are at the median time of the labels of the last closed round."""
    rounds, run = config.rounds, RunPaths(config.directory)
    rankings = rounds.prompts + round(rounds.prompts * rounds.overlap)
    first = rounds.gate.comparisons
    later = first + rounds.gate.anchor
    who = f", by {rounds.judge.name}" if rounds.judge else ""
    effort = [
        ("rankings of a round", f"{rounds.prompts} prompts x {1 + rounds.overlap:g} = {rankings:,}"),
        ("blind comparisons of a round", f"at most {first} in the first, {later} in later ones{who}"),
    ]
    if rounds.select == "fisher":
        effort.append(("prompts to learn from", _chosen(config)))
    closed = [paths for paths in run.started_rounds() if paths.round_rankings.exists()]
    seconds = []
    if closed:
        times = [row.get("active_ms") or 0 for row in read_jsonl(closed[-1].round_rankings)]
        seconds = [time / 1000 for time in times if time]
    if seconds:
        median = statistics.median(seconds)
        hours = rankings * median / 3600
        effort.append(
            ("person-hours of its rankings", f"{rankings:,} x {median:.0f} s (median so far) = {hours:.1f}")
        )
    return effort


def _chosen(config: RunConfig) -> str:
    rounds, run = config.rounds, RunPaths(config.directory)
    method, why = method_of(config, run, max(2, len(run.started_rounds()) + 1))
    if method == "random":
        return f"all at random: {why}"
    share = 1 - rounds.random_share
    return f"from the second round on {share:.0%} chosen, of {rounds.candidates:g} times as many"
