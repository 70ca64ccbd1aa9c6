"""How much the rankings of each labeler count in the loss (`reward_model.labeler_weights`): by how often one
is right about pairs that others have ordered too, as Dawid and Skene (1979) estimate it without gold.

CrowdBT (Chen et al. 2013) estimates the same reliability together with a strength of every response. With
thousands of responses that each stand in a few pairs, the pairs themselves are the items here.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from label.statistics.dawid_skene import dawid_skene
from learners.data.records import RankingRecord
from learners.supervised.losses import ranking_pairs

Pair = tuple[str, str, str]
"""Prompt and two responses."""


def labeler_weights(records: Iterable[RankingRecord]) -> dict[str, float]:
    """Weight of each labeler, mean 1: max(0, 2η − 1) over its mean, η the share of pairs that he or she
    orders right. Labelers who share no pair with others weigh 1. Empty if nobody does."""
    votes: dict[Pair, list[tuple[str, int]]] = defaultdict(list)
    for record in records:
        for better, worse in ranking_pairs(record.ranks):
            pair, category = _oriented(record, better, worse)
            votes[pair].append((record.labeler or "", category))
    shared = [given for given in votes.values() if len({name for name, _ in given}) > 1]
    if not shared:
        return {}
    names = sorted({name for given in shared for name, _ in given})
    number = {name: w for w, name in enumerate(names)}
    counts_IWO = np.zeros((len(shared), len(names), 2))
    for i, given in enumerate(shared):
        for name, category in given:
            counts_IWO[i, number[name], category] += 1
    model = dawid_skene(counts_IWO)
    raw_W = np.array([max(0.0, 2 * model.accuracy(w) - 1) for w in range(len(names))])
    if not raw_W.sum():
        return {}
    return dict(zip(names, (raw_W / raw_W.mean()).tolist(), strict=True))


def _oriented(record: RankingRecord, better: int, worse: int) -> tuple[Pair, int]:
    """The pair in an order that has nothing to do with which is better, and whether the first is."""
    texts = [record.responses[better], record.responses[worse]]
    keys = [hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest() for text in texts]
    if keys[0] <= keys[1]:
        return (str(record.prompt), texts[0], texts[1]), 0
    return (str(record.prompt), texts[1], texts[0]), 1
