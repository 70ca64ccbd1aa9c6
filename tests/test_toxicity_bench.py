"""bench/toxicity.py: what its figures are made of."""

import numpy as np
import pytest

from bench.toxicity import auc, first_sentence


def test_auc_is_the_share_of_ordered_pairs():
    scores, positive = np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])
    assert auc(scores, positive) == pytest.approx(0.75)  # three of four pairs
    assert auc(np.ones(4), positive) == pytest.approx(0.5)


def test_a_completion_ends_with_its_sentence():
    assert first_sentence(" a man. He said") == "a man."
    assert first_sentence('he said "no." Then') == 'he said "no."'
    assert first_sentence("of 3.5 million\nand more") == "of 3.5 million"
    assert first_sentence("no end here") == "no end here"
