"""Figures of a round, from the files that its stages have written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from cluster.config import RunConfig
from cluster.rounds.state import RoundState
from common.files import read_json, read_jsonl
from label.statistics.proportions import ratio_by_item
from label.statistics.votes import ranking_votes
from learners.data.conversations import as_messages, conversation_text

DEFAULT_KL_LIMIT = 10.0
"""Nats, where alarms.kl is not set: as the alarm itself."""


def prompt_text(prompt: Any) -> str:
    """What decides about the use of a prompt: `PromptRecord.split_text`."""
    return conversation_text(as_messages(prompt))


def policy_comparison(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The comparison of the newest policy with the one before that rankings of both hold: wins, ties half, of
    all pairs of responses, prompts being independent. None where all responses are of one policy."""
    won: dict[str, float] = defaultdict(float)
    total: dict[str, float] = defaultdict(float)
    names: list[str] = []
    for row in rows:
        policies = [str(policy["version"]) for policy in row["policy"]]
        names = names or list(dict.fromkeys(policies))
        for vote in ranking_votes(row["item"], policies, row["ranks"]):
            won[row["item"]] += vote.outcome if vote.first == names[0] else 1 - vote.outcome
            total[row["item"]] += 1
    if len(names) < 2:
        return None
    rate = ratio_by_item(list(won.values()), list(total.values()))
    return {"of": names[0], "over": names[1], **rate.to_json()}


def reward_figures(state: RoundState) -> dict[str, Any]:
    """What the reward stage says of the model that learned from all rounds so far."""
    done = read_json(state.paths.stage("reward").done)
    results = {key: value for key, value in done["results"].items() if not key.startswith("data/")}
    matrix = read_json(state.paths.reward_accuracy)
    if matrix:
        # In the round's own words.
        matrix["rows"][-1]["name"] = f"reward-{state.number}"
    return {"reward_model": results, "matrix": matrix}


def training_figures(state: RoundState, config: RunConfig) -> dict[str, Any]:
    """The last iteration of PPO, and what a judge of the config measured."""
    rows = [row for row in read_jsonl(state.paths.metrics) if row["stage"] == "ppo" and "objective/kl" in row]
    last = rows[-1] if rows else {}
    limit = config.alarms.kl
    if limit is None and config.ppo.kl_coef > 0:
        limit = DEFAULT_KL_LIMIT
    kept = ("objective/kl", "objective/scores", "response/length")
    metrics = {name: value for name, value in last.items() if name in kept or name.startswith("alarm/")}
    evaluation = read_json(state.paths.evaluation) or {}
    return {"ppo": metrics, "kl_limit": limit, "evaluation": evaluation.get("stages", {})}
