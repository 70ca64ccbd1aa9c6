"""Section `environment` of the run configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field

from common.config import Section
from learners.config import ModelConfig


class EnvironmentConfig(Section):
    name: str
    """The environment: module:NAME, where NAME is a `gymnasium.Env` class, a function that makes one, or a
    name that the module registers; or the name of one that is registered with
    `ray.tune.registry.register_env` or Gymnasium."""
    kwargs: dict[str, Any] = Field({})
    """Arguments of the class or function. A creator registered with `register_env` gets them as its
    env_config."""
    turns: int = Field(4, ge=1)
    """Most turns of the policy in an episode. ppo.max_response_tokens is the most tokens of one turn."""
    tokens: int = Field(160, ge=1)
    """Most tokens of an episode behind its first prompt: the policy's and the environment's together. One
    that would take more is truncated."""
    step_timeout_s: float = Field(30.0, gt=0)
    """Seconds that `reset` and each `step` may take. An episode whose step takes longer has timed out, and
    its worker is replaced."""
    workers: int = Field(2, ge=1)
    """Worker processes of each rollout actor in which environments run."""
    threads: int = Field(8, ge=1)
    """Steps that one worker runs at the same time, each in a thread. 1 for an environment that draws from the
    global generator of `random` or numpy."""
    tool_parser: str | None = None
    """vLLM's parser (serve.vllm.tool_call_parser has the same names) that reads tool calls out of the
    policy's turns. Empty: the environment gets turns as texts, and offers no tools."""

    def of_program(self) -> EnvironmentConfig:
        """With the environment that has a program, `name`, talk to the policy."""
        kwargs = {"program": self.name, "kwargs": self.kwargs}
        name = "actors.environments.endpoint:ProgramEnvironment"
        return self.model_copy(update={"name": name, "kwargs": kwargs})


@dataclass(frozen=True)
class EnvironmentSetup:
    """What a rollout actor needs of a run to have environments."""

    config: EnvironmentConfig
    model: ModelConfig
    """For the tokenizer and its chat template."""
    registered: bytes | None = None
    """The pickled creator that Ray's registry has under environment.name."""
