"""Agreement of labelers: published tables to their printed digits, and other libraries as oracles."""

import evalica
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from label.statistics.alpha import alpha
from label.statistics.kappa import cohen_kappa, fleiss_kappa
from label.statistics.pair_agreement import agreement, agreement_with, compare
from label.statistics.rank_correlation import mean_tau_b, tau_b

FLEISS_1971 = [
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
]
"""14 labelers put 10 subjects into 5 categories (Fleiss 1971, table 1, as in Wikipedia's article)."""

NONE = np.nan
KRIPPENDORFF_2011 = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NONE, NONE, NONE],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NONE, 3],
    [NONE, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NONE],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NONE],
]
"""Krippendorff 2011, Computing Krippendorff's Alpha-Reliability, section E."""


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def test_pairs_are_compared_with_and_without_ties():
    first, second = [1, 2, 2, 3], [2, 1, 3, 3]
    counts = compare(first, second)
    assert (counts.agreeing, counts.comparable, counts.equal, counts.pairs) == (3, 4, 3, 6)
    result = agreement([[first, second]])
    assert (result.without_ties.value, result.with_ties.value) == (0.75, 0.5)
    assert result.without_ties.low is None, "one item gives no interval"
    with pytest.raises(ValueError, match="3 and of 2"):
        compare([1, 2, 3], [1, 2])


def test_interval_of_agreement_takes_items_as_independent():
    """Two items of which one agrees in all of 3 pairs and one in none: p = .5, residuals ±1.5."""
    result = agreement_with([([1, 2, 3], [1, 2, 3]), ([1, 2, 3], [3, 2, 1])]).without_ties
    assert (result.value, result.n) == (0.5, 2)
    assert result.low == pytest.approx(max(0.0, 0.5 - 1.96 * (2 * 1.5**2) ** 0.5 / 6), abs=1e-4)
    everything_tied = agreement([[[1, 1], [1, 1]]])
    assert everything_tied.without_ties.value is None
    assert everything_tied.with_ties.value == 1


def test_tau_b_is_of_rank_vectors():
    assert tau_b([12, 2, 1, 12, 2], [1, 4, 7, 1, 0]) == pytest.approx(-0.471405, abs=1e-6)
    assert tau_b([1, 2, 2, 3], [2, 1, 3, 3]) == pytest.approx(0.4)
    # The orders acdb and bcda, as ranks of a, b, c and d. The id lists themselves would give +.667.
    assert tau_b([1, 4, 2, 3], [4, 1, 2, 3]) == pytest.approx(-2 / 3)
    result = mean_tau_b([[[1, 2, 2, 3], [2, 1, 3, 3]], [[1, 1], [1, 2]], [[1, 2], [1, 2], [2, 1]]])
    assert result.mean.value == pytest.approx((0.4 - 1 / 3) / 2)
    assert (result.mean.n, result.undefined) == (2, 1)


RANKS = st.integers(2, 7).flatmap(
    lambda count: st.tuples(*[st.lists(st.integers(1, 4), min_size=count, max_size=count)] * 2)
)


@settings(max_examples=200)
@given(RANKS)
def test_tau_b_equals_scipy(ranks):
    expected = kendalltau(*ranks).statistic
    value = tau_b(*ranks)
    if np.isnan(expected):
        assert value is None
    else:
        assert value == pytest.approx(expected, abs=1e-12)


def test_cohen_and_fleiss_on_published_tables(rng):
    assert cohen_kappa([[20, 5], [10, 15]], rng).value == pytest.approx(0.4)
    result = fleiss_kappa(FLEISS_1971, rng)
    assert result.value == pytest.approx(0.20993, abs=5e-6)
    assert result.low < result.value < result.high
    assert result.n == 10
    with pytest.raises(ValueError, match="same number of labels"):
        fleiss_kappa([[1, 1], [2, 1]], rng)


def test_figures_without_variation_are_undefined_and_say_so(rng):
    for estimate in (
        cohen_kappa([[10, 0], [0, 0]], rng),
        fleiss_kappa([[3, 0], [3, 0]], rng),
        alpha([[1, 1, 1], [1, 1, 1]], "nominal", rng),
    ):
        assert estimate.value is None
        assert "no variation" in str(estimate)
    assert "two labels" in alpha([[1, NONE], [NONE, 2]], "nominal", rng).why
    assert cohen_kappa([[0, 0], [0, 0]], rng).value is None
    assert fleiss_kappa([], rng).value is None


@pytest.mark.parametrize(
    ("level", "expected"),
    [("nominal", 0.743421), ("ordinal", 0.815388), ("interval", 0.849107), ("ratio", 0.797403)],
)
def test_alpha_of_krippendorffs_example(rng, level, expected):
    result = alpha(KRIPPENDORFF_2011, level, rng)
    assert result.value == pytest.approx(expected, abs=5e-7)
    assert result.low < result.value < result.high <= 1
    assert result.n == 11, "the last item has one label"


@settings(max_examples=200)
@given(
    st.integers(2, 5).flatmap(
        lambda labelers: st.lists(
            st.lists(st.sampled_from([1, 2, 3, 5, NONE]), min_size=labelers, max_size=labelers),
            min_size=2,
            max_size=12,
        )
    ),
    st.sampled_from(["nominal", "ordinal", "interval", "ratio"]),
)
def test_alpha_equals_evalica(items, level):
    ratings = np.array(items, float).T
    result = alpha(ratings, level, np.random.default_rng(0), draws=2)
    usable = ratings[:, (~np.isnan(ratings)).sum(0) >= 2]
    if result.value is None:
        assert len(np.unique(usable[~np.isnan(usable)])) < 2
        return
    # It counts items with one label among the values, which Krippendorff leaves out.
    expected = evalica.alpha(pd.DataFrame(usable), distance=level).alpha
    assert result.value == pytest.approx(expected, abs=1e-6)
