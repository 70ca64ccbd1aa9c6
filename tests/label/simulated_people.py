"""Simulated people: what they would rank and rate. Honest ones perceive as the quickstart's labelers
do (cluster/quickstart/labelers.py), of responses that are as good as its SFT model's."""

import numpy as np

from label.quality.judgment import Judgment

BEST = 6.0
K = 6


class Items:
    """Items of K responses: what each is worth, and how long it is."""

    def __init__(self, count, rng):
        shape = (count, K)
        coherent = rng.random(shape) < 0.91
        factual = coherent & (rng.random(shape) < 0.53)
        polite = rng.random(shape) < 0.76
        self.worth = 3.0 * factual + 2.0 * polite + 1.0 * coherent
        self.words = rng.integers(5, 60, shape)

    def gold(self, i):
        return dense_ranks(-self.worth[i])


def dense_ranks(values, tie=0.0):
    """1 for the smallest; values within `tie` of the first of a rank share it."""
    ranks, rank, start = np.zeros(len(values), int), 0, -np.inf
    for place in np.argsort(values, kind="stable"):
        if values[place] > start + tie:
            rank, start = rank + 1, values[place]
        ranks[place] = rank
    return tuple(ranks.tolist())


def honest(worth, words, order, rng, error=0.22):
    misjudged = rng.random(K) < error
    perceived = np.where(misjudged, rng.uniform(0, BEST, K), worth) + rng.normal(0, 0.4, K)
    return dense_ranks(-perceived, tie=0.15)


def at_random(worth, words, order, rng):
    return tuple((rng.permutation(K) + 1).tolist())


def always_first(worth, words, order, rng):
    ranks = np.zeros(K, int)
    ranks[order] = np.arange(1, K + 1)
    return tuple(ranks.tolist())


def longest(worth, words, order, rng):
    return dense_ranks(-words.astype(float))


def judge(name, rank, items, i, rng, words_per_minute=250.0, is_gold=False):
    order = rng.permutation(K)
    ranks = rank(items.worth[i], items.words[i], order, rng)
    likert = np.clip(8 - np.array(ranks), 1, 7)
    words = 20 + int(items.words[i].sum())
    minutes = words / (words_per_minute * rng.lognormal(0, 0.25))
    return Judgment(
        labeler=name,
        item=str(i),
        ranks=ranks,
        order=tuple(order.tolist()),
        words=tuple(items.words[i].tolist()),
        prompt_words=20,
        active_ms=int(60_000 * minutes),
        likert=tuple(likert.tolist()),
        time=float(i),
        gold=items.gold(i) if is_gold else (),
    )
