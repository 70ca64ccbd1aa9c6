"""What section `environment` must agree with in the rest of a config. Pure: loads neither Ray nor torch."""

from __future__ import annotations

from actors.config import RolloutConfig
from actors.environments.config import EnvironmentConfig
from actors.reward_config import EnvironmentReward, RewardsConfig
from learners.rl.config import PPOConfig
from serve.config import ServeConfig


def with_environment(
    environment: EnvironmentConfig | None, rewards: RewardsConfig, serve: ServeConfig
) -> tuple[RewardsConfig, ServeConfig]:
    """The two sections as an environment has them, where the config does not say otherwise: its rewards
    count, and serving reads tool calls as it did."""
    if environment is None:
        return rewards, serve
    if "sources" not in rewards.model_fields_set:
        rewards = rewards.model_copy(update={"sources": [EnvironmentReward()]})
    if environment.tool_parser and "tool_call_parser" not in serve.vllm:
        calls = {"enable_auto_tool_choice": True, "tool_call_parser": environment.tool_parser}
        serve = serve.model_copy(update={"vllm": {**serve.vllm, **calls}})
    return rewards, serve


def check_environment(
    environment: EnvironmentConfig | None,
    rewards: RewardsConfig,
    ppo: PPOConfig,
    rollout: RolloutConfig,
    context: int,
) -> None:
    """Raises ValueError for keys that need an environment and have none, or that contradict it."""
    if environment is None:
        if rewards.uses_environment:
            raise ValueError(
                "rewards.sources has kind environment, and section environment is empty; set "
                "environment.name, or choose another kind of reward"
            )
        if rollout.endpoint:
            raise ValueError(
                "rollout.endpoint has a program talk to the policy, and section environment is empty; set "
                "environment.name to module:function of the program"
            )
        if "gamma_per" in ppo.model_fields_set and ppo.gamma_per == "turn":
            raise ValueError(
                "ppo.gamma_per=turn counts the turns of an environment, and section environment is empty; "
                "leave it out"
            )
        return
    if environment.tokens >= context:
        raise ValueError(
            f"environment.tokens={environment.tokens} leaves no room for a prompt in model.context={context}"
        )
    if ppo.max_response_tokens > environment.tokens:
        raise ValueError(
            f"ppo.max_response_tokens={ppo.max_response_tokens}, which is of one turn, is over "
            f"environment.tokens={environment.tokens}, which is of a whole episode; lower it"
        )
    if ppo.overlong_buffer:
        raise ValueError(
            "ppo.overlong_buffer penalizes responses near ppo.max_response_tokens, which with an environment "
            "is the length of one turn of several; leave it out"
        )
