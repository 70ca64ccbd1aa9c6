"""Blind comparisons by a function, an HTTP endpoint or a language model in place of people (`rounds.judge`).

A judge scores each answer alone, so neither the policy nor the side can sway it; the greater score wins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from actors.function_rewards import FunctionTextReward
from actors.judge_rewards import JudgeTextReward
from actors.text_rewards import HTTPTextReward, RewardRequest, RewardResult
from cluster.rounds.config import AnyJudge
from cluster.rounds.evidence import prompt_text
from cluster.rounds.items import is_tie_unseen, versions
from cluster.rounds.state import RoundState
from common.errors import UserError
from common.files import read_jsonl
from common.run_paths import RunPaths

Row = dict[str, Any]
GROUP = "judge"


def judged(judge: AnyJudge, state: RoundState, asked: Sequence[Row]) -> list[Row]:
    """The comparisons with `ranks` and `scores`, without those of equal answers. Raises UserError if an
    answer has no score: the gate is read once, and not of what happened to be answered."""
    rows = {prompt_text(row["prompt"]): row for row in read_jsonl(state.paths.comparison_prompts)}
    items = [item for item in asked if not is_tie_unseen(item)]
    requests = []
    for item in items:
        row = rows[prompt_text(item["prompt"])]
        for text, ended in zip(item["responses"], item["ended"], strict=True):
            requests.append(RewardRequest(row, text, ended))
    results = _results(judge, state.run, requests)
    failed = [one for one in results if one.score is None or not math.isfinite(one.score)]
    if failed:
        why = failed[0].failure or "it does not apply"
        raise UserError(
            f"{state.paths.root}: rounds.judge gave no score for {len(failed)} of {len(results)} answers "
            f"({why}); nothing is decided, and the same command asks again"
        )
    scores = [float(one.score or 0) for one in results]
    found = []
    for place, item in enumerate(items):
        first, second = scores[2 * place : 2 * place + 2]
        ranks = [1 + (first < second), 1 + (second < first)]
        found.append(
            {**item, "ranks": ranks, "scores": [first, second], "labeler": judge.name, "group": GROUP}
        )
    return found


def _results(judge: AnyJudge, run: RunPaths, requests: Sequence[RewardRequest]) -> list[RewardResult]:
    if judge.kind == "function":
        function = FunctionTextReward(judge)
        try:
            return [result for future in function.submit(requests) for result in future.result()]
        finally:
            function.close()
    endpoint: HTTPTextReward | JudgeTextReward
    if judge.kind == "http":
        endpoint = HTTPTextReward(judge)
    else:
        cache = judge.cache or str(run.judge_answers)
        endpoint = JudgeTextReward(judge.model_copy(update={"cache": cache}))
    return [result for future in endpoint.submit(requests) for result in future.result()]


def split_comparisons(found: Sequence[Row], served: str) -> tuple[list[Row], list[Row]]:
    """The comparisons with the served policy, and those with the SFT policy."""
    gate = [row for row in found if served in versions(row)]
    return gate, [row for row in found if served not in versions(row)]
