"""On how few votes the first place rests."""

from __future__ import annotations

import numpy as np

from label.statistics.bradley_terry import strengths, win_probability
from label.statistics.estimate import Floats
from label.statistics.votes import VoteCounts


def votes_to_swap(counts: VoteCounts, limit: int = 1000) -> int | None:
    """How many votes, removed, put the second policy of the Bradley-Terry ranking (ties half)
    before the first. None if `limit` votes do not.

    Each time the vote is removed whose removal narrows the lead most by its influence, δᵀH⁻¹·score
    (Broderick, Giordano and Meager 2020). For two policies this is the smallest number; for more it
    is at most a little above it. Two votes of 57,477 were enough on a public leaderboard
    (arXiv:2508.11847)."""
    if len(counts.names) < 2:
        return None
    wins, ties = counts.wins_IAA.sum(0), np.triu(counts.ties_IAA.sum(0))
    # A trace of a prior keeps the strengths finite; it decides nothing else.
    prior = 1e-3
    theta = strengths((wins + (ties + ties.T) / 2)[None], prior)[0]
    first, second = np.argsort(-theta, kind="stable")[:2]
    for removed in range(limit + 1):
        theta = strengths((wins + (ties + ties.T) / 2)[None], prior)[0]
        if theta[first] < theta[second] - 1e-9:
            return removed
        from_wins, from_ties = _influence(wins, ties, theta, int(first), int(second))
        best_win, best_tie = from_wins.argmax(), from_ties.argmax()
        if max(from_wins.max(), from_ties.max()) <= 0:
            return None
        if from_wins.max() >= from_ties.max():
            wins.flat[best_win] -= 1
        else:
            ties.flat[best_tie] -= 1
    return None


def _influence(wins: Floats, ties: Floats, theta: Floats, first: int, second: int) -> tuple[Floats, Floats]:
    """By how much the removal of one win (A, A), or of one tie, narrows the lead, to first order;
    −∞ where there is none to remove."""
    total = wins + wins.T + ties + ties.T + 1e-3
    p = win_probability(theta[:, None] - theta[None, :])
    information = total * p * (1 - p)
    np.fill_diagonal(information, 0)
    information = np.diag(information.sum(1)) - information
    delta = np.zeros(len(theta))
    delta[first], delta[second] = 1, -1
    toward = np.linalg.pinv(information, hermitian=True) @ delta
    lead = toward[:, None] - toward[None, :]
    of_wins = np.where(wins > 0, lead * (1 - p), -np.inf)
    of_ties = np.where(ties > 0, lead * (0.5 - p), -np.inf)
    return of_wins, of_ties
