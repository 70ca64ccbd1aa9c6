"""Names of reward sources in metrics and messages."""

import pytest

from actors.config import RewardsConfig


def names(*sources):
    return RewardsConfig(sources=list(sources)).names


def function(path, **settings):
    return {"kind": "function", "path": path, **settings}


def test_functions_of_one_name_are_told_apart_by_their_modules():
    math, code, other = "math_reward:compute_score", "code_reward:compute_score", "mine:length"
    assert names(function(math), function(code), function(other)) == [math, code, "length"]
    assert names({"kind": "model"}, function(math)) == ["model", "compute_score"]
    assert names({"kind": "http", "url": "http://10.0.0.3:80/score"}) == ["10.0.0.3:80/score"]


@pytest.mark.parametrize(
    "sources", [[function("a:f"), function("a:f", weight=2)], [{"kind": "model"}, {"kind": "model"}]]
)
def test_a_source_is_there_once(sources):
    with pytest.raises(ValueError, match="each may occur once"):
        names(*sources)
