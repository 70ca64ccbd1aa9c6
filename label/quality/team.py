"""Figures of everybody's labels together, as the owner's page shows them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from label.quality.judgment import Judgment
from label.statistics.alpha import alpha
from label.statistics.bradley_terry import bradley_terry
from label.statistics.davidson import davidson
from label.statistics.estimate import Estimate
from label.statistics.pair_agreement import Ranking, agreement, agreement_of_pairs, pair_signs
from label.statistics.rank_correlation import mean_tau_b
from label.statistics.swap import votes_to_swap
from label.statistics.votes import Vote, VoteCounts, ranking_votes

Items = dict[str, list[Judgment]]


def team_quality(
    judgments: Iterable[Judgment], rng: np.random.Generator, draws: int = 1000
) -> dict[str, Any]:
    """JSON of agreement, τ_b, α on pairs and agreement of each person with the others, and of the
    strengths of the policies where these are known."""
    by_item: Items = defaultdict(list)
    for judgment in judgments:
        by_item[judgment.item].append(judgment)
    rankings = [[one.ranks for one in item] for item in by_item.values()]
    pairs = agreement(rankings)
    correlation = mean_tau_b(rankings)
    ratings, groups = _pair_ratings(by_item)
    labelers = {}
    for name in sorted({one.labeler for item in by_item.values() for one in item}):
        labelers[name] = _with_others(by_item, name).to_json()
    return {
        "agreement": pairs.without_ties.to_json(),
        "agreement_with_ties": pairs.with_ties.to_json(),
        "tau_b": correlation.mean.to_json(),
        "tau_b_undefined": correlation.undefined,
        "alpha_nominal": alpha(ratings, "nominal", rng, draws, groups).to_json(),
        "alpha_ordinal": alpha(ratings, "ordinal", rng, draws, groups).to_json(),
        "agreement_with_others": labelers,
        "policies": policy_strengths(by_item, rng, draws),
    }


def policy_strengths(by_item: Items, rng: np.random.Generator, draws: int = 1000) -> dict[str, Any] | None:
    """Bradley-Terry and Davidson over the policies of the responses; None without two of them."""
    votes: list[Vote] = []
    for item, judgments in by_item.items():
        for judgment in judgments:
            if judgment.policies:
                votes += ranking_votes(item, judgment.policies, judgment.ranks)
    if not votes:
        return None
    counts = VoteCounts.of(votes)
    return {
        "bradley_terry": bradley_terry(counts, rng, draws=draws).to_json(),
        "davidson": davidson(counts, rng, draws=draws).to_json(),
        "votes_to_swap": votes_to_swap(counts),
    }


def _pair_ratings(by_item: Items) -> tuple[np.ndarray, list[str]]:
    """(W, pairs of all items): which of two responses each labeler prefers, −1, 0 or 1; and the
    item of each pair."""
    names = sorted({one.labeler for item in by_item.values() for one in item})
    number = {name: w for w, name in enumerate(names)}
    columns, groups = [], []
    for name, judgments in by_item.items():
        pairs = len(pair_signs(judgments[0].ranks))
        block = np.full((len(names), pairs), np.nan)
        for judgment in judgments:
            block[number[judgment.labeler]] = pair_signs(judgment.ranks)
        columns.append(block)
        groups += [name] * pairs
    return np.concatenate([np.zeros((len(names), 0)), *columns], axis=1), groups


def _with_others(by_item: Items, name: str) -> Estimate:
    """Pair agreement of one person with everybody else."""
    pairs: list[Sequence[tuple[Ranking, Ranking]]] = []
    for judgments in by_item.values():
        own = [one.ranks for one in judgments if one.labeler == name]
        others = [one.ranks for one in judgments if one.labeler != name]
        pairs.append([(mine, theirs) for mine in own for theirs in others])
    return agreement_of_pairs(pairs).without_ties
