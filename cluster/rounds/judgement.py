"""The blind comparison of a round's policy with the served one, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.rounds import labels
from cluster.rounds.config import GateConfig
from cluster.rounds.evidence import prompt_text
from cluster.rounds.gate import (
    Comparison,
    comparison_of,
    decide,
    length_controlled,
    training_guards,
    win_rate,
)
from cluster.rounds.items import comparison, is_tie_unseen
from cluster.rounds.plan import SERVED
from cluster.rounds.state import RoundState, policy_of
from common.files import read_json, read_jsonl, write_jsonl
from label.store.items import names_its_policy
from label.workplace import Workplace
from serve import promotion
from serve.versions import current_policy, list_promotions, list_versions, store

Row = dict[str, Any]
BASE = "base"
"""Name of the SFT policy in the answers of the evaluate stage."""


def comparison_items(state: RoundState) -> tuple[list[Row], list[Row]]:
    """Writes down all comparisons of the round: with the served policy, and with the SFT policy. Returns
    their items."""
    served = state.values["served"]
    is_sft = served == "sft-0"
    baseline = BASE if is_sft else SERVED
    settings = GateConfig.model_validate(state.values["settings"]["gate"])
    gate = _items(state, baseline, served, "comparison_prompts", settings.comparisons)
    anchor: list[Row] = []
    if not is_sft:
        anchor = _items(state, BASE, "sft-0", "anchor_prompts", settings.anchor)
    write_jsonl(state.paths.comparison_items, [*gate, *anchor])
    return gate, anchor


def ask_people(state: RoundState, place: Workplace, gate: Sequence[Row], anchor: Sequence[Row]) -> None:
    """Equal answers are ties that nobody is asked about."""
    labels.open_comparisons(
        place,
        state.number,
        [row for row in gate if not is_tie_unseen(row)],
        [row for row in anchor if not is_tie_unseen(row)],
    )


def _items(state: RoundState, baseline: str, version: str, prompts: str, count: int) -> list[Row]:
    """Comparisons with the answers of `baseline` on the first `count` of the round's prompts whose answers do
    not name their policy: whoever reads the name knows which one it is."""
    lines = {prompt_text(line["prompt"]): line for line in read_jsonl(state.paths.answers)}
    policies, items = {"ppo": f"round-{state.number}", baseline: version}, []
    for text in state.values[prompts]:
        if text in lines:
            row = comparison(lines[text]["prompt"], lines[text]["answers"], policies)
            if not names_its_policy(row):
                items.append(row)
    return items[:count]


def judged_figures(
    state: RoundState, answered: Sequence[Row], anchored: Sequence[Row], has_flags: bool = True
) -> dict[str, Any]:
    """Reads the gate, once: its decision is part of the round's state from then on. `answered`, `anchored`:
    comparisons with the served and with the SFT policy; `has_flags` unless a judge made them."""
    asked = read_jsonl(state.paths.comparison_items)
    name = f"round-{state.number}"
    served = state.values["served"]
    comparisons = _counted(asked, answered, name, served)
    write_jsonl(state.paths.comparisons, [*answered, *anchored])
    guards = training_guards(state.values["ppo"], state.values["kl_limit"])
    settings = GateConfig.model_validate(state.values["settings"]["gate"])
    decision = decide(settings, comparisons, guards, has_flags)
    figures: dict[str, Any] = {
        "gate": {
            **decision.to_json(),
            "against": served,
            "length_controlled": length_controlled(comparisons).to_json(),
            "person_hours": labels.person_hours([*answered, *anchored]),
        }
    }
    if served != "sft-0":
        against_sft = _counted(asked, anchored, name, "sft-0")
        figures["anchor"] = {"against": "sft-0", **win_rate(against_sft).to_json()}
    return figures


def _counted(asked: Sequence[Row], answered: Sequence[Row], challenger: str, other: str) -> list[Comparison]:
    """Comparisons that people made, and those of equal answers."""
    unseen = []
    for row in asked:
        versions = {policy["version"] for policy in row["policy"]}
        if versions == {challenger, other} and is_tie_unseen(row):
            unseen.append(row)
    return [comparison_of(row, challenger) for row in [*answered, *unseen]]


def decide_round(state: RoundState) -> tuple[str, dict[str, Any]]:
    """(promoted or held, figures). Promotion goes through the canary where an endpoint serves the run."""
    request = read_json(state.paths.hold_request)
    if request:
        return "held", {"decision": f"held by {request['who']}: {request['why']}"}
    gate = state.values["gate"]
    if not gate["promote"]:
        return "held", {"decision": "; ".join(gate["reasons"])}
    return serve_round(
        state, f"win rate {gate['win_rate']['value']:.3f} over {gate['against']}", "hero rounds"
    )


def serve_round(state: RoundState, why: str, who: str | None = None) -> tuple[str, dict[str, Any]]:
    """Stores the policy of the round as a version of the run and promotes it; again is once."""
    name, folder = policy_of(state.run, state.number, Path())
    root = state.run.root
    # A version's files must not change under an endpoint that has taken it.
    if name not in list_versions(root):
        store(root, name, folder, newest=KEPT_VERSIONS)
    if state.run.current.exists() and current_policy(root).name == name:
        row = next(row for row in reversed(list_promotions(root)) if row["to"] == name)
    else:
        row = promotion.promote(root, name, why, who)
    if row["outcome"] != "promoted":
        return "held", {"decision": f"the canary has refused it: {row.get('reason', '')}"}
    canary = "nothing serves the run, so no canary has tried it"
    if row.get("metrics"):
        canary = "the canary has passed it"
    return "promoted", {"decision": f"promoted: {why}; {canary}", "serves": name}


KEPT_VERSIONS = 1000
"""The versions of rounds are few, and links to files that the rounds keep."""
