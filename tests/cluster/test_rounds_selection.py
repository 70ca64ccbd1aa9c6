"""Choosing prompts by the information of their responses."""

import numpy as np
import pytest
from rich.console import Console

from cluster.config_loader import load_config
from cluster.rounds.controller import Rounds
from cluster.rounds.effort import round_effort
from cluster.rounds.report import print_rounds
from cluster.rounds.selection import Design
from cluster.rounds.selection_gain import compare, learned, pairs_of
from common.files import read_json
from common.run_paths import RunPaths
from label.statistics.design import comparison_gain
from tests.cluster.test_rounds import go, settings_of


def design_of(seed=0, prompts=40, responses=4, width=6):
    rng = np.random.default_rng(seed)
    # Some prompts differ in much, others in next to nothing.
    scale = rng.uniform(0.01, 2, prompts)
    parts = [(rng.normal(size=(responses, width)) * one, rng.normal(size=responses)) for one in scale]
    return Design(parts)


def information(design, index):
    """Σ w δδᵀ over the pairs, as it is written in the paper."""
    features, scores = design.parts[index]
    total = np.zeros((features.shape[1],) * 2)
    for i in range(len(scores)):
        for j in range(i):
            p = 1 / (1 + np.exp(scores[j] - scores[i]))
            difference = features[i] - features[j]
            total += p * (1 - p) * np.outer(difference, difference)
    return total


def test_gains_are_those_of_the_determinant_of_the_information():
    design = design_of()
    total = np.eye(6)
    for index in (3, 17, 5):
        before = np.linalg.slogdet(total)[1]
        total = total + information(design, index)
        assert design.add(index) == pytest.approx(np.linalg.slogdet(total)[1] - before)
        np.testing.assert_allclose(design.inverse, np.linalg.inv(total), atol=1e-10)


def test_one_pair_gains_what_the_formula_of_one_comparison_says():
    # M = I, δ = (2, 0), equal scores: w = 0.25, log(1 + 0.25 · 4) = log 2.
    design = Design([(np.array([[2.0, 0.0], [0.0, 0.0]]), np.zeros(2))])
    assert design.gain(0) == pytest.approx(comparison_gain(np.array([2.0, 0.0]), np.eye(2), 0.5))
    assert design.gain(0) == pytest.approx(0.693147, abs=1e-6)


def test_the_lazy_choice_is_the_greedy_one_and_beats_chance():
    design, plain = design_of(), design_of()
    chosen, gain = design.choose(range(40), 10)
    expected = []
    for _ in range(10):
        rest = [index for index in range(40) if index not in expected]
        best = max(rest, key=plain.gain)
        plain.add(best)
        expected.append(best)
    assert chosen == expected
    by_chance = design_of()
    assert gain > 1.2 * sum(by_chance.add(index) for index in range(10))


def test_the_head_of_the_gain_is_the_minimum_of_its_loss():
    # One pair, δ = 2, equal scores: θ = 2σ(−2θ).
    pairs = pairs_of([2, 1], np.array([[0.0], [2.0]]), np.zeros(2))
    theta = float(learned(pairs)[0])
    assert theta == pytest.approx(2 / (1 + np.exp(2 * theta)), abs=1e-5)
    # Ties make no pair.
    assert len(pairs_of([1, 1, 2], np.zeros((3, 1)), np.zeros(3))[1]) == 2
    useless = pairs_of([1, 2], np.zeros((2, 1)), np.zeros(2))
    found = compare([pairs, pairs], [useless], {"a": [pairs], "b": [pairs, useless]})
    assert found["labels"] == 1
    assert found["random"] == 0
    gain_a = np.log(2) - np.log1p(np.exp(-2 * theta))
    assert found["chosen"] == pytest.approx((gain_a + gain_a / 2) / 2, abs=1e-5)
    assert found["difference"]["n"] == 2
    assert compare([], [useless], {"a": [pairs]})["difference"]["value"] is None


FISHER = ["rounds.select=fisher", "reward_model.validation_share=0.2", "rounds.prompts=40"]


class Enough(Exception):
    pass


def planned(root, number):
    """The state of a round that ends before anything is sampled, and its config."""

    def stop(file, last):
        raise Enough

    config = load_config(None, settings_of(root, *FISHER, f"rounds.count={number}"))
    with pytest.raises(Enough):
        Rounds(config, stop, print).go()
    paths = RunPaths(root).round(number)
    return read_json(paths.state), load_config(paths.plan)


def test_choosing_is_turned_off_after_two_rounds_without_gain(tmp_path, monkeypatch):
    monkeypatch.setenv("HERO_TEST_TRAP", "1")
    root = tmp_path / "run"
    go(root, *FISHER, "rounds.count=2")
    # One round is no reason yet.
    state, config = planned(root, 3)
    assert state["select"] == {"method": "fisher", "why": ""}
    assert config.sample.reward_model
    go(root, *FISHER, "rounds.count=3")
    first, *chosen = (read_json(RunPaths(root).round(number).state) for number in (1, 2, 3))
    assert first["selection"] == {"method": "random", "why": "no reward model to choose by yet"}
    assert "selection_gain" not in first
    for state in chosen:
        assert state["selection"]["method"] == "fisher"
        # The information was there, but not what it promised.
        assert state["selection"]["gain"] > state["selection"]["gain_of_random_instead"]
        assert state["selection_gain"]["difference"]["value"] <= 0
        assert state["selection_gain"]["labels"] > 10
    state, config = planned(root, 4)
    assert state["select"]["method"] == "random"
    assert (
        "fisher is off: chosen prompts gained nothing over random ones (round 2 -" in state["select"]["why"]
    )
    assert config.sample.reward_model is None
    config = load_config(None, settings_of(root, *FISHER, "rounds.count=4"))
    assert dict(round_effort(config))["prompts to learn from"].startswith("all at random: fisher is off")
    console = Console(width=400, record=True)
    print_rounds(root, console)
    assert "random; fisher is off: chosen prompts gained nothing" in console.export_text()


def test_choosing_goes_on_where_it_gains(tmp_path):
    root = tmp_path / "run"
    go(root, *FISHER, "rounds.count=3")
    for number in (2, 3):
        gain = read_json(RunPaths(root).round(number).state)["selection_gain"]
        assert gain["chosen"] > gain["random"] > 0
        assert gain["difference"]["value"] == pytest.approx(gain["chosen"] - gain["random"])
    assert planned(root, 4)[0]["select"]["method"] == "fisher"
    config = load_config(None, settings_of(root, *FISHER))
    expected = "from the second round on 50% chosen, of 3 times as many"
    assert dict(round_effort(config))["prompts to learn from"] == expected
