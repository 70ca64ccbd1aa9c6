"""What evaluation makes of a judge's words, whatever function the judge is."""

import numpy as np
import pytest

from cluster.context import measures
from cluster.quickstart.oracle import Verdict
from cluster.rl.evaluation import columns_of
from cluster.run.report import optimization
from cluster.stages.evaluate import win_rate


@pytest.mark.parametrize(
    ("said", "named"),
    [
        (0.5, {"score": 0.5}),
        (True, {"score": 1.0}),
        ({"score": 2, "polite": None}, {"score": 2, "polite": None}),
        (Verdict(True, False, True), {"factual": True, "rude": False, "coherent": True, "score": 6.0}),
    ],
)
def test_a_judge_may_say_a_number_or_name_its_measures(said, named):
    assert measures(said) == named


def test_measures_become_columns_over_prompts_and_responses():
    answers = [
        {"text": "a", "reward": r, "factual": f, "never": None}
        for r, f in ((1, True), (2, None), (3, False), (4, True))
    ]
    columns = columns_of(answers, 2)
    assert columns.keys() == {"reward", "factual"}
    assert columns["reward"].tolist() == [[1, 2], [3, 4]]
    np.testing.assert_array_equal(columns["factual"], [[1, np.nan], [0, 1]])


def test_the_win_rate_counts_ties_half():
    ours, theirs = ([{"score": s} for s in scores] for scores in ((3, 1, 2, 2), (1, 3, 2, 1)))
    assert win_rate(ours, theirs, "judge")["rate"] == (1 + 0 + 0.5 + 1) / 4


def test_the_report_draws_ppo_and_best_of_n_over_the_root_of_the_kl():
    rows = [
        {"eval/kl": 4.0, "eval/reward": 1.0, "eval/score": 5.0},
        {"objective/kl": 3.0},
        {"eval/kl": -0.1, "eval/reward": 0},
    ]
    reward, score = optimization(rows, [{"n": 1, "kl": 0.0, "reward": 0.2, "score": 4.0}])
    assert reward["curves"] == {"PPO": [(2.0, 1.0), (0.0, 0)], "best of n": [(0.0, 0.2)]}
    assert score["curves"]["PPO"] == [(2.0, 5.0)]
