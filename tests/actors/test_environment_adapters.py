"""Environments of other packages, where these are installed."""

import pytest

from actors.environments.adapters import ReasoningGym


def test_a_question_of_reasoning_gym_is_scored_by_its_dataset():
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")
    environment = ReasoningGym("chain_sum", size=50, min_terms=2, max_terms=3)
    question, _ = environment.reset(seed=7)
    assert "arithmetic" in question
    answer = environment._entry["answer"]
    assert environment.step(f" {answer}\n")[1:3] == (1.0, True)
    assert environment.reset(seed=57)[0] == question
    assert environment.step("no idea")[1] < 1.0
