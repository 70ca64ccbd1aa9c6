"""What evaluation computes from rewards and a judge's measures, whatever function the judge is."""

import json
import re

import numpy as np
import pytest
import torch

from actors.reward_config import RewardsConfig
from cluster.config import RunConfig
from cluster.context import Context, measures
from cluster.quickstart.oracle import Verdict
from cluster.rl.evaluation import (
    EvaluationPrompts,
    answer_columns,
    finite_or_none,
    pass_rates,
    powers_of_two,
    reward_columns,
    standard_error,
)
from cluster.stages.evaluate import answer_lines, compared, flat_rates, win_rate
from common.errors import UserError


@pytest.mark.parametrize(
    ("verdict", "named"),
    [
        (0.5, {"score": 0.5}),
        (True, {"score": 1.0}),
        ({"score": 2, "polite": None}, {"score": 2, "polite": None}),
        (Verdict(True, False, True), {"factual": True, "rude": False, "coherent": True, "score": 6.0}),
    ],
)
def test_a_judge_may_return_a_number_or_named_measures(verdict, named):
    assert measures(verdict) == named


def test_measures_are_plain_numbers_for_json():
    verdict = {"score": np.float32(1.5), "right": np.bool_(True), "tokens": torch.tensor(3), "n": None}
    plain = measures(verdict)
    assert plain == {"score": 1.5, "right": True, "tokens": 3, "n": None}
    assert json.loads(json.dumps(plain)) == plain
    assert json.dumps(measures(np.float64(0.5))) == '{"score": 0.5}'
    with pytest.raises(TypeError, match=re.escape("measure why is 'bad' (str); expected a number")):
        measures({"score": 1.0, "why": "bad"})


async def later(row, response, ended):
    return {"score": np.float32(len(response))}


def fails(row, response, ended):
    return row["no such key"]


def no_score(row, response, ended):
    return {"right": True}


def judge_of(name):
    config = RunConfig(evaluate={"judge": f"tests.cluster.test_evaluation:{name}"})
    return Context(config, run=None, fleets=None).judge()


def test_a_judge_may_be_a_coroutine():
    assert judge_of("later")({"prompt": "?"}, "four", True) == {"score": 4.0}


@pytest.mark.parametrize(
    ("name", "message"),
    [("fails", "KeyError: 'no such key' ("), ("no_score", "expected a number, or measures with a score")],
)
def test_a_judge_that_fails_is_named_with_the_prompt(name, message):
    with pytest.raises(UserError) as error:
        judge_of(name)({"prompt": "What?"}, "four", True)
    assert f"evaluate.judge=tests.cluster.test_evaluation:{name}" in str(error.value)
    assert message in str(error.value)
    assert "the prompt was 'What?'" in str(error.value)


def test_evaluation_prompts_are_sampled_once_each_by_the_seed():
    prompts = EvaluationPrompts([{"prompt": i} for i in range(20)], [[i] for i in range(20)])
    sampled = prompts.sample(8, seed=0)
    indices = [row["prompt"] for row in sampled.rows]
    assert len(set(indices)) == 8
    assert sampled.tokens == [[i] for i in indices]
    assert prompts.sample(8, seed=0) == sampled
    assert prompts.sample(8, seed=1) != sampled
    assert len(prompts.sample(50, seed=0).rows) == 20


def test_answers_become_columns_over_prompts_and_responses():
    answers = []
    for reward, factual in ((1, True), (2, None), (3, False), (4, True)):
        answers.append({"text": "a", "reward": reward, "factual": factual, "never": None})
    columns = answer_columns(answers, 2)
    assert columns.keys() == {"reward", "factual"}
    assert columns["reward"].tolist() == [[1, 2], [3, 4]]
    np.testing.assert_array_equal(columns["factual"], [[1, np.nan], [0, 1]])


def test_rewards_are_weighted_sums_of_raw_scores():
    path = "tests.cluster.test_reward_aggregator:quality"
    sources = [
        {"kind": "model", "weight": 2.0, "clip": 0.1},
        {"kind": "function", "path": path, "weight": 0.5},
    ]
    raw_CB = np.array([[1.0, 2.0], [4.0, np.nan]])
    applies_CB = np.ones((2, 2), dtype=bool)
    columns = reward_columns(raw_CB, applies_CB, RewardsConfig(sources=sources))
    assert columns.keys() == {"reward", "reward/model", "reward/quality"}
    np.testing.assert_array_equal(columns["reward"], [4.0, np.nan])
    assert columns["reward/model"].tolist() == [1.0, 2.0]
    assert reward_columns(raw_CB[:1], applies_CB[:1], RewardsConfig()).keys() == {"reward"}
    assert [finite_or_none(value) for value in columns["reward"]] == [4.0, None]
    sources[1]["weight"] = 0  # the other one is the whole reward now, also where this one has failed
    columns = reward_columns(raw_CB, applies_CB, RewardsConfig(sources=sources))
    assert columns.keys() == {"reward", "reward/quality"}
    assert columns["reward"].tolist() == [2.0, 4.0]


def test_pass_rates_are_unbiased_and_skip_incomplete_prompts():
    measure_PJ = np.array([[1, 0, 0, 0], [2, 1, 1, 1], [np.nan, 1, 1, 1]])
    rates = pass_rates(measure_PJ)
    # One of four: 1/4, 1 - C(3,2)/C(4,2) = 1/2, 1. All of four: 1.
    assert rates == pytest.approx({"pass@1": 0.625, "pass@2": 0.75, "pass@4": 1.0, "mean@4": 0.625})


def test_pass_rates_end_with_all_samples():
    assert pass_rates(np.ones((2, 3))).keys() == {"pass@1", "pass@2", "pass@3", "mean@3"}
    assert powers_of_two(16) == [1, 2, 4, 8, 16]
    assert powers_of_two(15) == [1, 2, 4, 8]


def test_the_standard_error_is_over_prompts():
    assert standard_error(np.array([1.0, 3.0])) == pytest.approx(1.0)  # std 2 ** 0.5 over 2 ** 0.5
    assert standard_error(np.array([1.0])) == 0.0


def test_the_win_rate_counts_ties_half():
    challenger = [{"score": score} for score in (3, 1, 2, 2)]
    baseline = [{"score": score} for score in (1, 3, 2, 1)]
    result = win_rate({"base": [], "sft": baseline, "ppo": challenger}, "judge", "sft", "ppo")
    assert (result["challenger"], result["baseline"]) == ("ppo", "sft")
    assert result["rate"] == (1 + 0 + 0.5 + 1) / 4
    assert result["count"] == 4
    # Points 1, 0, 0.5, 1 around 0.625: variance 0.6875 / 3, half-width 1.96 (variance / 4) ** 0.5
    margin = 1.96 * (0.6875 / 3 / 4) ** 0.5
    assert result["low"] == pytest.approx(0.625 - margin)
    assert result["high"] == 1.0  # 0.625 + margin is over 1


def test_prompts_that_were_not_scored_do_not_count():
    challenger, baseline = [{"score": 2.0}, {"score": None}], [{"score": 1.0}, {"score": 1.0}]
    result = win_rate({"sft": baseline, "ppo": challenger}, "judge", "sft", "ppo")
    assert (result["rate"], result["count"]) == (1.0, 1)
    assert win_rate({"sft": baseline[1:], "ppo": challenger[1:]}, "judge", "sft", "ppo") is None


def test_rates_are_logged_by_stage_and_decoding():
    rates = {"sft": {"greedy": {"reward": 1.0}, "sampled": {"reward": 0.5, "kl": 0.0}}}
    expected = {"sft/greedy/reward": 1.0, "sft/sampled/reward": 0.5, "sft/sampled/kl": 0.0}
    assert flat_rates(rates) == expected


def test_answers_of_all_stages_stand_side_by_side():
    rows = [{"prompt": "p0", "task": "capital"}, {"prompt": "p1"}]
    answers = {"sft": [{"text": "a"}, {"text": "b"}], "ppo": [{"text": "c"}, {"text": "d"}]}
    first, second = [json.loads(line) for line in answer_lines(rows, answers).splitlines()]
    assert first == {
        "prompt": "p0",
        "task": "capital",
        "answers": {"sft": {"text": "a"}, "ppo": {"text": "c"}},
    }
    assert second["task"] is None
    assert second["answers"]["ppo"] == {"text": "d"}


@pytest.mark.parametrize(
    ("models", "pair"),
    [
        (["pretrain", "sft", "ppo"], ("sft", "ppo")),
        (["base", "sft"], ("base", "sft")),
        (["base", "ppo"], ("base", "ppo")),
        (["sft", "dpo", "ppo"], ("sft", "ppo")),
        (["base", "sft", "dpo"], ("sft", "dpo")),
        (["dpo", "ppo"], ("dpo", "ppo")),
    ],
)
def test_a_policy_is_compared_with_the_one_that_it_was_made_from(models, pair):
    assert compared(models) == pair
