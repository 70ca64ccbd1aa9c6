"""Strengths of policies from votes and rankings: closed forms, published examples, evalica and choix."""

from itertools import combinations, permutations

import choix
import evalica
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from label.statistics.bradley_terry import bradley_terry, strengths
from label.statistics.davidson import davidson
from label.statistics.design import comparison_gain
from label.statistics.plackett_luce import plackett_luce
from label.statistics.swap import votes_to_swap
from label.statistics.votes import Vote, VoteCounts, ranking_votes

WIKIPEDIA = [[0, 2, 0, 1], [3, 0, 5, 0], [0, 3, 0, 1], [4, 0, 3, 0]]
"""Wins of A to D over each other, from Wikipedia's article on the Bradley-Terry model."""


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def repeated(first, second, wins, losses, ties=0):
    """Votes with an item of their own each."""
    outcomes = [1] * wins + [0] * losses + [0.5] * ties
    return [Vote((first, second, i), first, second, outcome) for i, outcome in enumerate(outcomes)]


def votes_of(wins):
    names = "ABCD"
    votes = []
    for a, b in permutations(range(len(wins)), 2):
        votes += repeated(names[a], names[b], wins[a][b], 0)
    return votes


def test_bradley_terry_of_the_published_example(rng):
    ratings = bradley_terry(VoteCounts.of(votes_of(WIKIPEDIA)), rng, prior=0)
    assert np.exp(ratings.theta_A) == pytest.approx([0.6398, 1.0433, 0.6598, 2.2704], abs=5e-5)
    assert ratings.ranking() == ["D", "B", "C", "A"]
    assert (ratings.votes, ratings.items) == (22, 22)


def test_separated_policies_have_finite_strengths_by_the_prior(rng):
    counts = VoteCounts.of(repeated("A", "B", 5, 0) + repeated("B", "C", 2, 0))
    theta = bradley_terry(counts, rng).theta_A
    assert theta == pytest.approx([2.9176, -0.3054, -2.6123], abs=5e-5)
    with pytest.raises(ArithmeticError, match="prior above 0"):
        bradley_terry(counts, rng, prior=0)


def test_davidson_in_closed_form(rng):
    """π_A/π_B = wins ratio and ν = ties/√(product of wins) for one pair."""
    counts = VoteCounts.of(repeated("A", "B", 4, 2, ties=3))
    ratings = davidson(counts, rng, prior=0)
    assert np.exp(ratings.theta_A[0] - ratings.theta_A[1]) == pytest.approx(2)
    assert ratings.tie.value == pytest.approx(3 / 8**0.5)
    with pytest.raises(ArithmeticError, match="no ties"):
        davidson(VoteCounts.of(repeated("A", "B", 4, 2)), rng, prior=0)
    # With the prior neither missing ties nor missing wins are infinite.
    assert davidson(VoteCounts.of(repeated("A", "B", 4, 0)), rng).tie.value < 0.5
    assert davidson(VoteCounts.of(repeated("A", "B", 0, 0, ties=9)), rng).tie.value > 10


def test_plackett_luce_of_constructed_rankings():
    counts = {"abc": 20, "acb": 10, "bac": 15, "bca": 5, "cab": 6, "cba": 4}
    rankings = []
    for order, count in counts.items():
        rankings += [{name: rank for rank, name in enumerate(order, 1)}] * count
    theta = plackett_luce(rankings, prior=0)
    assert np.exp(theta["a"] - theta["c"]) == pytest.approx(3)
    assert np.exp(theta["b"] - theta["c"]) == pytest.approx(2)
    with pytest.raises(ArithmeticError):
        plackett_luce([{"a": 1, "b": 2}], prior=0)
    assert plackett_luce([{"a": 1, "b": 2}])["a"] > 0
    assert plackett_luce([{"a": 1}]) == {"a": 0.0}


def test_a_tie_in_a_ranking_counts_as_all_its_orders():
    base = [{"a": 1, "b": 2, "c": 3, "d": 4}, {"d": 1, "c": 2, "b": 3, "a": 4}]
    tied = [{"b": 1, "a": 2, "c": 2, "d": 2}] * 6
    orders = [{"b": 1} | {name: rank for rank, name in enumerate(order, 2)} for order in permutations("acd")]
    assert plackett_luce(base + tied) == pytest.approx(plackett_luce(base + orders))


def square(count, low, high):
    row = st.lists(st.integers(low, high), min_size=count, max_size=count)
    return st.lists(row, min_size=count, max_size=count)


MATRIX = st.integers(2, 4).flatmap(lambda count: square(count, 0, 6))


def oracle_votes(wins, ties, prior_win, prior_tie):
    """As evalica takes them: first, second, winner and weight of every kind of vote."""
    rows = []
    for a, b in permutations(range(len(wins)), 2):
        rows.append((a, b, evalica.Winner.X, wins[a][b] + prior_win))
    for a, b in combinations(range(len(wins)), 2):
        rows.append((a, b, evalica.Winner.Draw, ties[a][b] + prior_tie))
    first, second, winners, weights = zip(*rows, strict=True)
    return {"xs": first, "ys": second, "winners": winners, "weights": list(weights)}


def votes_with_ties(wins, ties):
    votes = votes_of(wins)
    for a, b in combinations(range(len(wins)), 2):
        votes += repeated("ABCD"[a], "ABCD"[b], 0, 0, ties[a][b])
    return votes


PRECISE = {"tolerance": 1e-13, "limit": 1_000_000}


@settings(max_examples=200)
@given(MATRIX, st.data())
def test_bradley_terry_equals_evalica(wins, data):
    ties = data.draw(square(len(wins), 0, 4))
    votes = votes_with_ties(wins, ties)
    assume(len({vote.first for vote in votes} | {vote.second for vote in votes}) == len(wins))
    result = evalica.bradley_terry(**oracle_votes(wins, ties, 0, 0.2), **PRECISE)
    log = np.log(result.scores.sort_index().to_numpy())
    ratings = bradley_terry(VoteCounts.of(votes), np.random.default_rng(0), draws=1)
    assert ratings.theta_A == pytest.approx(log - log.mean(), abs=1e-6)


@settings(max_examples=200)
@given(st.integers(3, 4).flatmap(lambda count: st.tuples(square(count, 1, 6), square(count, 1, 4))))
def test_davidson_equals_evalica(counts):
    """Without rare outcomes and equal policies: evalica stops when the strengths stop, which they may do
    before its ν has moved at all."""
    wins, ties = counts
    result = evalica.newman(**oracle_votes(wins, ties, 0.1, 0.2), tie_weight=1.0, **PRECISE)
    ratings = davidson(VoteCounts.of(votes_with_ties(wins, ties)), np.random.default_rng(0), draws=1)
    assume(np.abs(ratings.theta_A).max() > 0.05)
    log = np.log(result.scores.sort_index().to_numpy())
    assert ratings.theta_A == pytest.approx(log - log.mean(), abs=1e-6)
    assert ratings.tie.value == pytest.approx(2 * result.v, abs=1e-6)


@settings(max_examples=200)
@given(MATRIX, st.data())
def test_davidson_expects_what_was_observed(wins, data):
    """At the maximum of the likelihood the expected points of every policy, and the expected ties, are the
    observed ones, rare outcomes or not."""
    ties = data.draw(square(len(wins), 0, 4))
    votes = votes_with_ties(wins, ties)
    assume(len({vote.first for vote in votes} | {vote.second for vote in votes}) == len(wins))
    counts = VoteCounts.of(votes)
    ratings = davidson(counts, np.random.default_rng(0), draws=1)
    pi, nu = np.exp(ratings.theta_A), ratings.tie.value
    other = 1 - np.eye(len(wins))
    observed_wins = counts.wins_IAA.sum(0) + 0.1 * other
    observed_ties = counts.ties_IAA.sum(0) + 0.2 * other
    tie = nu * np.sqrt(pi[:, None] * pi)
    total = pi[:, None] + pi + tie
    played = observed_wins + observed_wins.T + observed_ties
    points = (played * (pi[:, None] + tie / 2) / total * other).sum(1)
    assert points == pytest.approx((observed_wins + observed_ties / 2).sum(1), rel=1e-9)
    assert (played * tie / total * other).sum() == pytest.approx(observed_ties.sum(), rel=1e-9)


@settings(max_examples=200)
@given(st.integers(3, 5).flatmap(lambda n: st.lists(st.permutations(range(n)), min_size=2, max_size=8)))
def test_plackett_luce_equals_choix(orders):
    # Every order also backwards: then every strength is finite.
    orders = [*orders, *([order[::-1] for order in orders])]
    rankings = []
    for order in orders:
        rankings.append({str(name): rank for rank, name in enumerate(order, 1)})
    count = len(orders[0])
    expected = choix.ilsr_rankings(count, [tuple(order) for order in orders], tol=1e-11)
    theta = plackett_luce(rankings, prior=0)
    expected = expected - expected.mean()
    assert [theta[str(name)] for name in range(count)] == pytest.approx(expected, abs=1e-6)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from("ABC"), st.sampled_from("ABC"), st.sampled_from([0, 0.5, 1]))))
def test_rankings_of_two_give_bradley_terry(triples):
    votes = []
    for i, (first, second, outcome) in enumerate(triples):
        if first != second:
            votes.append(Vote(i, first, second, outcome))
    assume(votes)
    rankings = []
    for vote in votes:
        ranks = {1: (1, 2), 0: (2, 1), 0.5: (1, 1)}[vote.outcome]
        rankings.append({vote.first: ranks[0], vote.second: ranks[1]})
    ratings = bradley_terry(VoteCounts.of(votes), np.random.default_rng(0), draws=1)
    assert list(plackett_luce(rankings).values()) == pytest.approx(ratings.theta_A, abs=1e-9)


def test_votes_of_a_ranking():
    votes = ranking_votes("item", ["new", "new", "old", "base"], [1, 2, 2, 3])
    assert [(vote.first, vote.second, vote.outcome) for vote in votes] == [
        ("new", "old", 1),
        ("new", "base", 1),
        ("new", "old", 0.5),
        ("new", "base", 1),
        ("old", "base", 1),
    ]
    with pytest.raises(ValueError, match="two policies"):
        VoteCounts.of([Vote(0, "a", "a", 1)])
    with pytest.raises(ValueError, match=r"0, 0\.5 or 1"):
        VoteCounts.of([Vote(0, "a", "b", 2)])


def test_first_place_rests_on_votes():
    assert votes_to_swap(VoteCounts.of(repeated("A", "B", 6, 4))) == 3
    assert votes_to_swap(VoteCounts.of(repeated("A", "B", 6, 4, ties=5))) == 3
    assert votes_to_swap(VoteCounts.of(repeated("A", "B", 60, 4)), limit=10) is None
    assert votes_to_swap(VoteCounts.of(repeated("A", "B", 6, 0))) is None, "nothing left speaks for B"
    assert votes_to_swap(VoteCounts.of([])) is None


def test_swap_of_three_policies_is_close_to_the_smallest(rng):
    """Against all subsets of up to 3 votes, for 10 random sets of 14."""
    compared = 0
    for _ in range(10):
        votes = []
        for i in range(14):
            first, second = rng.choice(["A", "B", "C"], 2, replace=False)
            votes.append(Vote(i, str(first), str(second), float(rng.integers(2))))
        counts = VoteCounts.of(votes)
        own = votes_to_swap(counts)
        smallest = smallest_swap(counts)
        if smallest is not None:
            compared += 1
            assert smallest <= own <= smallest + 1
    assert compared >= 5


def smallest_swap(counts):
    wins = counts.wins_IAA
    theta = strengths(wins.sum(0)[None], 1e-3)[0]
    first, second = np.argsort(-theta, kind="stable")[:2]
    for size in (1, 2, 3):
        chosen = list(combinations(range(len(wins)), size))
        left = np.array([wins.sum(0) - wins[list(subset)].sum(0) for subset in chosen])
        theta = strengths(left, 1e-3)
        if (theta[:, first] < theta[:, second] - 1e-9).any():
            return size
    return None


def test_information_of_one_more_comparison():
    assert comparison_gain(np.array([2.0, 0]), np.eye(2), 0.5) == pytest.approx(0.693147, abs=5e-7)
    assert comparison_gain(np.array([3.0, 0]), np.eye(2), 0.95) == pytest.approx(0.355925, abs=5e-7)
