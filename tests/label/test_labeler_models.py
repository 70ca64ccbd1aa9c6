"""How good labelers are: the published example, and parameters that are found again."""

import numpy as np
import pytest
from scipy.special import expit

from label.statistics.crowd import (
    crowd_bt,
    crowd_bt_likelihood,
    temperature_likelihood,
    temperatures,
)
from label.statistics.dawid_skene import dawid_skene

DAWID_SKENE_1979 = """
111 1 1 1 1/333 4 3 3 4/112 2 1 2 2/222 3 1 2 1/222 3 2 2 2/222 3 3 2 2/122 2 1 1 1/333 3 4 3 3/
222 2 2 2 3/232 2 2 2 3/444 4 4 4 4/222 3 3 4 3/111 1 1 1 1/222 3 2 1 2/121 1 1 1 1/111 2 1 1 1/
111 1 1 1 1/111 1 1 1 1/222 2 2 2 1/222 1 3 2 2/222 2 2 2 2/222 2 2 2 1/222 3 2 2 2/221 2 2 2 2/
111 1 1 1 1/111 1 1 1 1/232 2 2 2 2/111 1 1 1 1/111 1 1 1 1/112 1 1 2 1/111 1 1 1 1/333 3 2 3 3/
111 1 1 1 1/222 2 2 2 2/222 3 2 3 2/433 4 3 4 3/221 2 2 3 2/232 3 2 3 3/333 3 4 3 2/111 1 1 1 1/
111 1 1 1 1/121 2 1 1 1/232 2 2 2 2/121 1 1 1 1/222 2 2 2 2"""
"""Table 1: fitness of 45 patients from 1 to 4, by observer 1 (three times) and observers 2 to 5."""

STRENGTHS = np.array([1.5, 0.5, -0.5, -1.5])


def test_dawid_skene_of_the_papers_table():
    patients = DAWID_SKENE_1979.replace("\n", "").split("/")
    counts = np.zeros((len(patients), 5, 4))
    for i, patient in enumerate(patients):
        for observer, said in enumerate(patient.split()):
            for category in said:
                counts[i, observer, int(category) - 1] += 1
    assert counts.shape[0] == 45
    model = dawid_skene(counts)
    assert model.prevalence_O == pytest.approx([0.3996, 0.4220, 0.1118, 0.0667], abs=5e-5)
    assert model.log_likelihood == pytest.approx(-192.891, abs=5e-4)
    assert np.diag(model.confusion_WOO[0]) == pytest.approx([0.889, 0.876, 0.661, 0.444], abs=5e-4)
    assert model.posterior_IO.sum(1) == pytest.approx(np.ones(45))
    assert 0.8 < model.accuracy(0) < 0.9


def test_dawid_skene_with_missing_labels_finds_the_careless():
    rng = np.random.default_rng(3)
    truth = rng.integers(2, size=400)
    counts = np.zeros((400, 5, 2))
    for labeler, error in enumerate([0.1, 0.1, 0.1, 0.1, 0.5]):
        for i in range(400):
            if rng.random() < 0.7:
                said = truth[i] ^ (rng.random() < error)
                counts[i, labeler, int(said)] += 1
    model = dawid_skene(counts)
    accuracy = [model.accuracy(labeler) for labeler in range(5)]
    assert accuracy[:4] == pytest.approx([0.9] * 4, abs=0.05)
    assert accuracy[4] == pytest.approx(0.5, abs=0.1)
    with pytest.raises(ValueError, match="no labels"):
        dawid_skene(np.zeros((3, 2, 2)))


def expected_wins(chance):
    return 100 * (1 - np.eye(4)) * chance


def test_crowd_bt_finds_its_parameters_again():
    p = expit(STRENGTHS[:, None] - STRENGTHS)
    wins = np.stack([expected_wins(eta * p + (1 - eta) * (1 - p)) for eta in (0.95, 0.8, 0.5)])
    model = crowd_bt(wins)
    assert model.theta_A == pytest.approx(STRENGTHS, abs=1e-3)
    assert model.reliability_W == pytest.approx([0.95, 0.8, 0.5], abs=1e-3)
    weights = model.weights()
    assert weights.mean() == pytest.approx(1)
    assert weights[2] == pytest.approx(0, abs=0.01)


def test_temperatures_are_found_again():
    difference = STRENGTHS[:, None] - STRENGTHS
    wins = np.stack([expected_wins(expit(beta * difference)) for beta in (2, 1, 0.5)])
    model = temperatures(wins)
    assert model.reliability_W == pytest.approx([2, 1, 0.5], rel=1e-4)
    assert model.theta_A == pytest.approx(STRENGTHS, abs=1e-4)


@pytest.mark.parametrize("likelihood", [crowd_bt_likelihood, temperature_likelihood])
def test_gradients_equal_finite_differences(likelihood):
    rng = np.random.default_rng(5)
    wins = rng.integers(0, 9, (3, 4, 4)).astype(float)
    point = rng.normal(size=7)
    _, gradient = likelihood(point, wins)
    for i in range(7):
        step = np.zeros(7)
        step[i] = 1e-5
        slope = (likelihood(point + step, wins)[0] - likelihood(point - step, wins)[0]) / 2e-5
        assert gradient[i] == pytest.approx(slope, rel=1e-6, abs=1e-6)


def test_labelers_who_are_always_right_stay_finite():
    wins = np.zeros((2, 3, 3))
    wins[0, [0, 0, 1], [1, 2, 2]] = 10
    wins[1] = wins[0]
    model = crowd_bt(wins, prior=0.2)
    assert np.isfinite(model.theta_A).all()
    assert model.theta_A[0] > model.theta_A[1] > model.theta_A[2]
    assert (model.reliability_W > 0.9).all()
