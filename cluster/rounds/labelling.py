"""From sampled responses to rankings: items for people, and what they said, as a file that training reads."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from cluster.config import RunConfig
from cluster.rounds import labels
from cluster.rounds.evidence import policy_comparison, prompt_text
from cluster.rounds.flags import mark_flagged
from cluster.rounds.items import expanded, shown
from cluster.rounds.planning import TEXT, USE, read_prompts
from cluster.rounds.prompts import order_key, use_of
from cluster.rounds.selection import PLACE, choose
from cluster.rounds.state import RoundState
from common.errors import UserError
from common.files import read_jsonl, write_jsonl
from common.run_paths import RoundPaths
from label.statistics.pair_agreement import agreement
from label.workplace import Workplace

Row = dict[str, Any]
MOST_OF_ONE = 200
"""Rankings of one user of the endpoint that are trained on."""


def records_of(config: RunConfig) -> dict[str, Row]:
    """Rows of the prompt file by prompt."""
    return {str(prompt.row["prompt"]): prompt.row for prompt in read_prompts(config)}


def open_labels(config: RunConfig, state: RoundState, place: Workplace) -> dict[str, Any]:
    """Chooses the items of the round among the sampled prompts, writes them down, and gives them to the
    workplace. Returns figures. Raises UserError if no prompt has different responses."""
    by_use: dict[str, list[Row]] = defaultdict(list)
    all_equal = 0
    for place_in_file, record in enumerate(read_jsonl(state.paths.sampled)):
        if shown(record) is None:
            all_equal += 1
            continue
        by_use[record["row"][USE]].append(
            {**record, TEXT: prompt_text(record["prompt"]), PLACE: place_in_file}
        )
    heldout_count = max(1, round(config.rounds.prompts * config.reward_model.validation_share))
    heldout = by_use["heldout"][:heldout_count]
    training, figures = choose(config, state, by_use["training"], config.rounds.prompts - len(heldout))
    if not heldout or not training:
        raise UserError(
            f"{state.paths.root}: no prompt to {'hold out' if training else 'learn from'} has two different "
            f"responses ({all_equal} have equal ones); raise rounds.prompts or rounds.responses"
        )
    items = sorted([*heldout, *training], key=lambda item: order_key(item[TEXT], "items"))
    # Before the workplace: who is asked is decided once, and an interrupted call adds the rest.
    write_jsonl(state.paths.items, items)
    twice = {id(item) for item in items[: round(len(items) * config.rounds.overlap)]}
    labels.open_rankings(
        place,
        state.number,
        [to_show(item) for item in items if id(item) not in twice],
        [to_show(item) for item in items if id(item) in twice],
    )
    labels.open_calibration(place, [to_show(item) for item in by_use["calibration"]])
    uses = Counter(item["row"][USE] for item in items)
    return {"items": dict(sorted(uses.items())), "all_equal": all_equal, "selection": figures}


def to_show(item: Row) -> Row:
    different = shown(item)
    assert different is not None
    return different


def close_labels(config: RunConfig, state: RoundState, place: Workplace) -> dict[str, Any]:
    """Writes the rankings of the round, for all responses that were sampled. Returns figures: labels, hours,
    agreement, and how the rankings compare the two policies. Raises UserError if nothing can be learned."""
    given, description = labels.rankings(place, state.number)
    rows = _of_all_responses(given, state.paths)
    usable = [row for row in rows if len(set(row["ranks"])) > 1]
    if not usable:
        raise UserError(
            f"{state.paths.root}: {len(rows)} rankings, none of which prefers a response; nothing can be "
            "learned from this round (`hero label stats` shows who ties everything)"
        )
    late = late_rankings(state, place)
    write_jsonl(state.paths.round_rankings, mark_flagged([*rows, *late]))
    public = public_rankings(config, state)
    if public:
        write_jsonl(state.paths.public_rankings, public)
    return {
        "labels": {
            "rankings": len(rows),
            "without_preference": len(rows) - len(usable),
            "people": len({row["labeler"] for row in rows}),
            "groups": dict(sorted(Counter(row["group"] for row in rows).items())),
            "held_back": description["held_back"],
            "all_bad": description["all_bad"],
            "late": len(late),
            "public": len(public),
            "person_hours": labels.person_hours([*rows, *late]),
        },
        "agreement": _agreement(rows),
        "free_comparison": policy_comparison(rows),
    }


def late_rankings(state: RoundState, place: Workplace) -> list[Row]:
    """Rankings of items of earlier rounds that none of these has: given after they were closed, by people who
    had opened the item before, or held back at that time. Each keeps the number of its own round."""
    earlier = [paths for paths in state.run.started_rounds() if paths.root.name < state.paths.root.name]
    known = {row["label"] for paths in earlier for row in read_jsonl(paths.round_rankings)}
    rows = []
    for number, paths in enumerate(earlier, start=1):
        rows += _of_all_responses(labels.later_rankings(place, number, known), paths)
    return rows


def _of_all_responses(given: Sequence[Row], paths: RoundPaths) -> list[Row]:
    """Rankings of all responses that the round has sampled, in an order that does not depend on who was asked
    first."""
    if not given:
        return []
    records = {item[TEXT]: item for item in read_jsonl(paths.items)}
    rows = [expanded(ranking, records[prompt_text(ranking["prompt"])]) for ranking in given]
    return sorted(rows, key=lambda row: (order_key(prompt_text(row["prompt"]), "items"), row["labeler"]))


def public_rankings(config: RunConfig, state: RoundState) -> list[Row]:
    """With `rounds.public`, the rankings with consent from the endpoint's pages so far: at most
    MOST_OF_ONE of each user, and none of a prompt that is compared or calibrated on."""
    if not config.rounds.public:
        return []
    kept: list[Row] = []
    given: Counter[str] = Counter()
    for row in read_jsonl(state.run.feedback_rankings):
        is_free = use_of(prompt_text(row["prompt"]), config) in ("training", "heldout")
        if row.get("consent") and is_free and given[row["labeler"]] < MOST_OF_ONE:
            given[row["labeler"]] += 1
            kept.append({**row, "round": state.number})
    return kept


def _agreement(rows: Sequence[Row]) -> dict[str, Any]:
    by_item = defaultdict(list)
    for row in rows:
        by_item[row["item"]].append(row["ranks"])
    return agreement(by_item.values()).without_ties.to_json()
