"""Pair agreement of a reward model: counts by hand, rates and their interval."""

import numpy as np
import pytest

from learners.supervised.agreement import PairAgreement, PairCounts, count_agreeing, described


@pytest.mark.parametrize(
    ("scores", "ranks", "expected"),
    [
        ([3.0, 2.0, 1.0], [1, 2, 3], (3, 3)),
        ([1.0, 2.0, 3.0], [1, 2, 3], (0, 3)),
        ([3.0, 1.0, 2.0], [1, 2, 3], (2, 3)),
        ([3.0, 1.0, 2.0], [1, 2, 2], (2, 2)),  # a tie makes no pair
        ([1.0, 1.0], [1, 2], (0.5, 1)),  # equal scores are no order: as good as chance
        ([1.0, 1.0, 0.0], [1, 2, 3], (2.5, 3)),
        ([1.0, 2.0], [1, 1], (0, 0)),
    ],
)
def test_count_agreeing(scores, ranks, expected):
    assert count_agreeing(scores, ranks) == expected


def example():
    """Two prompts: 4 of 6 and 1 of 2 pairs agree."""
    return PairAgreement(
        labelers=PairCounts(np.array([4.0, 1.0]), np.array([6.0, 2.0])),
        length=PairCounts(np.array([3.0, 1.0]), np.array([6.0, 2.0])),
        oracle=PairCounts(np.array([3.0, 0.0]), np.array([4.0, 0.0])),
    )


def test_rates_weigh_every_pair_alike():
    rates = example().rates()
    assert rates["accuracy/labelers"] == 5 / 8
    assert rates["pairs"] == 8
    assert rates["accuracy/length_only"] == 4 / 8
    assert rates["accuracy/truth"] == 3 / 4  # the second prompt has no oracle ranks
    assert rates["truth_pairs"] == 4


def test_the_interval_is_that_of_a_ratio_over_prompts():
    # Residuals 4 - 6 * 5/8 and 1 - 2 * 5/8 are a quarter each: 1.96 * sqrt(2 / 16) / 8
    rates = example().rates()
    assert rates["accuracy/high"] - rates["accuracy/labelers"] == pytest.approx(1.96 * (2 / 16) ** 0.5 / 8)
    assert rates["accuracy/labelers"] - rates["accuracy/low"] == pytest.approx(1.96 * (2 / 16) ** 0.5 / 8)


def test_the_difference_to_length_is_paired_by_prompt():
    # 1 of 6 and 0 of 2 more than length: 1/8; residuals 1 - 6/8 and 0 - 2/8 are a quarter each.
    rates = example().rates()
    assert rates["accuracy/over_length"] == 1 / 8
    margin = 1.96 * (2 / 16) ** 0.5 / 8
    assert rates["accuracy/over_length_low"] == pytest.approx(1 / 8 - margin)
    assert rates["accuracy/over_length_high"] == pytest.approx(1 / 8 + margin)
    assert described(rates) == (
        "62.5% of 8 held-out pairs as the labelers (95% interval 53.8% to 71.2%); longer is better: 50.0%, "
        "difference +12.5 points (+3.8 to +21.2)"
    )


def test_without_oracle_ranks_there_is_no_accuracy_by_truth():
    nothing = PairCounts(np.zeros(2), np.zeros(2))
    rates = PairAgreement(example().labelers, example().length, nothing).rates()
    assert "accuracy/truth" not in rates
    assert "truth_pairs" not in rates


def test_folds_are_joined_and_survive_a_file():
    saved = example().to_array().tolist()
    joined = PairAgreement.concat([PairAgreement.from_array(np.array(saved)), example()])
    assert joined.labelers.agreeing_G.tolist() == [4, 1, 4, 1]
    assert joined.oracle.total_G.tolist() == [4, 0, 4, 0]
    assert joined.rates()["pairs"] == 16


def test_counting_adds_to_one_prompt():
    agreement = PairAgreement.from_array(np.zeros((6, 2)))
    agreement.labelers.add(1, [2.0, 1.0], [1, 2])
    agreement.labelers.add(1, [1.0, 2.0], [1, 2])
    assert agreement.labelers.agreeing_G.tolist() == [0, 1]
    assert agreement.labelers.total_G.tolist() == [0, 2]
    assert agreement.length.total_G.tolist() == [0, 0]
