"""Names of reward sources in metrics and messages."""

import pytest

from actors.reward_config import RewardsConfig


def names(*sources):
    return RewardsConfig(sources=list(sources)).names


def function(path, **settings):
    return {"kind": "function", "path": path, **settings}


def test_functions_of_one_name_are_told_apart_by_their_modules():
    math, code, other = "math_reward:compute_score", "code_reward:compute_score", "mine:length"
    assert names(function(math), function(code), function(other)) == [math, code, "length"]
    assert names({"kind": "model"}, function(math)) == ["model", "compute_score"]
    assert names({"kind": "http", "url": "http://10.0.0.3:80/score"}) == ["10.0.0.3:80/score"]


def test_judges_of_one_model_are_told_apart_by_their_rubrics():
    judge = {"kind": "judge", "base_url": "http://127.0.0.1:1/v1", "model": "m"}
    assert names({**judge, "rubric": "kind"}, {**judge, "rubric": "true"}) == [
        "judge m: kind",
        "judge m: true",
    ]
    assert names(judge, {"kind": "model"}, {"kind": "model", "path": "a"}) == ["judge m", "model", "a"]


def test_a_reward_model_is_named_by_the_end_of_its_path_or_all_of_it():
    one, other = ({"kind": "model", "path": f"/{root}/runs/a/reward/model"} for root in "xy")
    assert names({"kind": "model"}, one) == ["model", "a/reward/model"]
    assert names({"kind": "model", "path": "/m"}, one, other) == ["m", one["path"], other["path"]]


@pytest.mark.parametrize(
    "sources", [[function("a:f"), function("a:f", weight=2)], [{"kind": "model"}, {"kind": "model"}]]
)
def test_a_source_is_there_once(sources):
    with pytest.raises(ValueError, match="each may occur once"):
        names(*sources)
