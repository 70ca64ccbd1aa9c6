"""pass@k and best of N against enumeration of all choices, and against published values."""

from itertools import combinations

import numpy as np
import pytest

from learners.rl.estimates import best_of_n, best_of_n_kl, pass_at_k


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_is_the_share_of_all_choices_with_a_right_one(k):
    right = [True, False, True, False, False]
    choices = list(combinations(right, k))
    assert pass_at_k(2, 5, k) == pytest.approx(sum(map(any, choices)) / len(choices))


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_best_of_n_is_the_mean_over_all_choices(n):
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(2, 3, 4))
    best = [
        row_v[max(c, key=lambda i: row_r[i])]
        for row_r, row_v in zip(rewards, values, strict=True)
        for c in combinations(range(4), n)
    ]
    assert best_of_n(rewards, values, n) == pytest.approx(np.mean(best))


def test_best_of_n_leaves_out_prompts_that_have_no_value():
    assert best_of_n(np.array([[0.0, 1.0], [0.0, 1.0]]), np.array([[5.0, 7.0], [np.nan, np.nan]]), 2) == 7


@pytest.mark.parametrize(
    ("n", "published"), [(1, 0.0), (8, 1.2), (64, 3.2), (128, 3.9), (256, 4.5), (512, 5.2)]
)
def test_the_kl_of_best_of_n_is_the_published_one(n, published):
    assert best_of_n_kl(n) == pytest.approx(
        published, abs=0.06
    )  # Stiennon et al. 2020, Table 10, one decimal
