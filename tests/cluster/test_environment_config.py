"""What section `environment` must agree with in the rest of a config."""

import pytest

from cluster.config_loader import load_config
from common.errors import UserError

NAME = "environment.name=actors.environments.tools:ToolEnvironment"


def test_with_an_environment_its_rewards_count_unless_others_are_named():
    config = load_config(None, [NAME])
    assert [source.kind for source in config.rewards.sources] == ["environment"]
    assert config.evaluate.judge is None
    assert not config.scoring_reads_rows
    config = load_config(None, [NAME, "rewards.sources=[{kind: model}, {kind: environment}]"])
    assert config.rewards.names == ["model", "environment"]
    assert load_config(None, []).environment is None
    assert [source.kind for source in load_config(None, []).rewards.sources] == ["model"]


def test_the_endpoint_reads_tool_calls_as_the_environment_did():
    config = load_config(None, [NAME, "environment.tool_parser=hermes"])
    assert config.serve.vllm == {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}
    own = load_config(None, [NAME, "environment.tool_parser=hermes", "serve.vllm={tool_call_parser: xlam}"])
    assert own.serve.vllm == {"tool_call_parser": "xlam"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rewards.sources=[{kind: environment}]"], "section environment is empty; set environment.name"),
        (["ppo.gamma_per=turn", "ppo.gamma=0.9"], "counts the turns of an environment"),
        (["rollout.endpoint=true"], "set environment.name to module:function of the program"),
        ([NAME, "environment.tokens=300"], "leaves no room for a prompt in model.context=256"),
        ([NAME, "environment.tokens=20"], "is over environment.tokens=20, which is of a whole episode"),
        ([NAME, "ppo.overlong_buffer=4"], "is the length of one turn of several"),
        ([NAME, "environment.step_timeout=3"], "did you mean environment.step_timeout_s"),
        ([NAME, "rewards.sources=[{kind: environment, weight: 2}]"], "unknown key"),
    ],
)
def test_what_contradicts_the_environment_is_refused(overrides, message):
    with pytest.raises(UserError) as error:
        load_config(None, overrides)
    assert message in str(error.value)
