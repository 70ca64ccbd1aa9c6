"""Shares and their intervals; position, length, speed and straight-lining."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from label.statistics.position import longer_better, position_bias
from label.statistics.proportions import (
    binomial_p,
    comparisons_needed,
    difference,
    difference_p,
    mean,
    ratio_by_item,
    wilson,
)
from label.statistics.regression import logistic
from label.statistics.speed import speed
from label.statistics.straight_lining import straight_lining


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (81, 263, 0.2553, 0.3662), (0, 20, 0, 0.1611)],
)
def test_wilson_intervals(successes, n, low, high):
    result = wilson(successes, n)
    assert (result.low, result.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
    assert result.value == successes / n
    expected = binomtest(successes, n).proportion_ci(method="wilson")
    assert (result.low, result.high) == pytest.approx(expected, abs=1e-12)


def test_figures_of_nothing_are_undefined():
    for estimate in (wilson(0, 0), ratio_by_item([0], [0]), mean([]), difference((1, 2), (0, 0))):
        assert estimate.value is None
        assert "no" in estimate.why
    assert mean([3.0]).low is None
    assert binomial_p(0, 0) == 1


def test_difference_of_shares():
    """Newcombe 1998, table II, method 10, example (a): 56/70 and 48/80."""
    result = difference((56, 70), (48, 80))
    assert result.value == pytest.approx(0.2)
    assert (result.low, result.high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))
    assert difference_p((56, 70), (48, 80)) < 0.02
    assert difference_p((5, 10), (50, 100)) == pytest.approx(1)


def test_comparisons_that_a_comparison_of_policies_needs():
    assert [comparisons_needed(rate) for rate in (0.55, 0.58, 0.6)] == [783, 305, 194]
    assert comparisons_needed(0.4) == comparisons_needed(0.6)
    with pytest.raises(ValueError, match=r"not 0\.5"):
        comparisons_needed(0.5)


def test_logistic_regression_of_a_constructed_set():
    """35 of 50 won where the first was longer, 25 of 50 where it was shorter: b0 = b1 = logit(.7)/2."""
    wins = [1] * 35 + [0] * 15 + [1] * 25 + [0] * 25
    longer = [1] * 50 + [-1] * 50
    for coefficient in logistic(wins, longer):
        assert coefficient.estimate.value == pytest.approx(0.423649, abs=5e-7)
        assert coefficient.error == pytest.approx(0.209307, abs=5e-7)
        assert coefficient.z == pytest.approx(2.024, abs=5e-4)
        assert coefficient.p == pytest.approx(2 * norm.sf(2.02405), abs=1e-5)
    assert binomial_p(60, 100) == pytest.approx(0.05689, abs=5e-6)


def test_logistic_regression_of_repeated_votes_is_as_sure_as_one_of_them():
    wins, longer, items = [1, 0, 1, 1, 0, 1], [1, 1, 0, 2, -1, -2], list("abcdef")
    once = logistic(wins, longer, items)
    thrice = logistic(wins * 3, longer * 3, items * 3)
    assert thrice[1].error == pytest.approx(once[1].error)
    assert logistic(wins * 3, longer * 3)[1].error < 0.6 * logistic(wins, longer)[1].error


def test_logistic_regression_without_an_answer_says_why():
    assert "without exception" in logistic([1, 1, 0, 0], [2, 1, -1, -2])[0].estimate.why
    assert "without exception" in logistic([1, 1, 1], [2, 1, -1])[0].estimate.why
    assert "do not vary" in logistic([1, 0, 1], [2, 2, 2])[1].estimate.why


def test_position_bias_of_those_who_read_and_those_who_do_not():
    rng = np.random.default_rng(1)
    honest = [list(rng.permutation(4) + 1) for _ in range(200)]
    result = position_bias(honest)
    assert result.p > 0.01
    assert result.first_better.low < 0.5 < result.first_better.high
    result = position_bias([[1, 2, 3, 4]] * 20)
    assert (result.slope, result.first_better.value) == (pytest.approx(1), 1)
    assert result.p < 1e-4
    assert position_bias([[4, 3, 2, 1]] * 20).slope == pytest.approx(-1)
    assert position_bias([[1, 1, 1]] * 20).p == 1
    assert position_bias([]).p == 1
    # For pairs it is the normal form of the sign test: 60 of 100.
    pairs = position_bias([[1, 2]] * 60 + [[2, 1]] * 40)
    assert pairs.p == pytest.approx(2 * norm.sf(2))


def test_p_of_position_bias_is_uniform_for_those_who_read():
    rng = np.random.default_rng(2)
    p = [position_bias(rng.integers(1, 4, (30, 5))).p for _ in range(400)]
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.03)


def test_length_preference():
    result = longer_better([([1, 2, 3], [30, 20, 10]), ([1, 1, 2], [5, 9, 7])])
    # Of the second, pairs of equal rank do not count, and one of the two others prefers the shorter.
    assert result.value == pytest.approx(4 / 5)
    assert longer_better([([1, 2], [5, 5])]).value is None


def test_speed_of_reading():
    result = speed([(300, 60_000)] * 8 + [(2000, 60_000)] * 2 + [(100, 0)])
    assert result.words_per_minute.value == 300
    assert result.words_per_minute.n == 10
    assert result.too_fast.value == pytest.approx(0.2)
    assert speed([]).words_per_minute.value is None
    assert speed([(1, 60_000)] * 3).words_per_minute.low is None
    values = speed([(count, 60_000) for count in range(1, 101)]).words_per_minute
    assert (values.low, values.high) == (40, 60)
    assert math.isclose(values.value, 50.5)


def test_straight_lining():
    result = straight_lining([(1, 2, 3)] * 19 + [(2, 1, 3)])
    assert result.share.value == pytest.approx(0.95)
    assert result.answer == (1, 2, 3)
    assert straight_lining([]).share.value is None
