"""Stage 4: the reward model, from rankings; a prompt with all its pairs is one element of a batch."""

from __future__ import annotations

from typing import Any

from cluster.context import Context
from cluster.stages.supervised import supervise
from learners.datasets import check_ranking, encode_rankings, read_rows
from learners.errors import UserError
from learners.models import load_tokenizer


def run(context: Context) -> dict[str, Any]:
    config, folder = context.config, context.run.stage("reward")
    policy, path = context.run.model("sft"), context.run.rankings()
    rows = read_rows(path, check_ranking)
    data = encode_rankings(rows, load_tokenizer(policy), config.model.context, path, truth_ranks(context, rows))
    if len(data.groups) < 3:
        raise UserError(f"{path}: rankings of at least two prompts are needed, one of them for validation")
    data.save(folder / "rankings.npz")
    learners = context.fleets.learners()
    total = learners.all("start_reward", policy, config.reward, folder, config.seed)[0]
    demonstrations = context.run.stage("sft") / "demonstrations.npz"

    def center() -> dict[str, float]:
        return {"bias": learners.all("center", demonstrations)[0]} if demonstrations.exists() else {}

    return supervise(context, "reward", learners, total, config.reward.save_every, [policy, path], finish=center)


def truth_ranks(context: Context, rows: list[dict[str, Any]]) -> Any:
    """Ranks by the judge, for reporting accuracy against the truth; None where rows do not carry what it needs."""
    judge = context.judge()
    if judge is None or not all("row" in row for row in rows):
        return None

    def ranks(row: dict[str, Any]) -> list[int]:
        ended = row.get("ended") or [True] * len(row["responses"])
        worth = [judge(row["row"], r, e)["score"] for r, e in zip(row["responses"], ended, strict=True)]
        order = sorted(set(worth), reverse=True)
        return [order.index(w) + 1 for w in worth]

    return ranks
