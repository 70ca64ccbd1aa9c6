"""Which metrics of the canary refuse a new version, and the word lists."""

import pytest

from serve.canary import REFUSAL_PATTERN, RUDE_PATTERN, regression
from serve.config import CanaryConfig, ServeConfig

GOOD = {"logprob_error": 3e-7, "reward": 1.0, "rude": 0.1, "refusal": 0.0, "ended": 1.0, "length": 9.0}
LIMITS = ServeConfig(
    dtype="float32", canary=CanaryConfig(max_reward_drop=0.5, max_rude_rise=0.2, max_refusal_rise=0.1)
)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"reward": 0.6, "rude": 0.25, "refusal": 0.05}, None),
        ({"reward": 5.0, "rude": 0.0}, None),
        ({"reward": 0.4}, "reward went from 1.00 to 0.40"),
        ({"rude": 0.4}, "rude went from 0.10 to 0.40"),
        ({"refusal": 0.2}, "refusal went from 0.00 to 0.20"),
        ({"logprob_error": 1e-3}, "differ from the learner's by 1.0e-03, over 1e-05"),
        ({"logprob_error": float("nan")}, "differ from the learner's"),
        ({"reward": float("nan")}, "reward went from 1.00 to nan"),
    ],
)
def test_a_version_with_a_regression_is_refused(change, reason):
    refusal = regression(GOOD, {**GOOD, **change}, LIMITS)
    assert refusal is None if reason is None else reason in refusal


def test_word_lists_match_rude_answers_and_refusals():
    rude = ("What a stupid question.", "Find out yourself.", "You are an idiot.", "Nobody asked you.")
    refusals = (
        "I can't help with that.",
        "I'm sorry, but no.",
        "As an AI, I have no opinion.",
        "I am not able to do so.",
    )
    good = (
        "The capital of France is Paris.",
        "Happy to help. The answer is 7.",
        "I can help you with that.",
        "Good day!",
    )
    texts = (*rude, *refusals, *good)
    assert [bool(RUDE_PATTERN.search(text)) for text in texts] == [True] * 4 + [False] * 8
    assert [bool(REFUSAL_PATTERN.search(text)) for text in texts] == [False] * 4 + [True] * 4 + [False] * 4
