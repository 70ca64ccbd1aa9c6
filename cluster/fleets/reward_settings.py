"""What scoring actors need of a run beside section `rewards`: the template of its reward model, the cache of
its judges, and their API keys."""

from __future__ import annotations

import os

from actors.reward_config import AnyReward, RewardsConfig
from cluster.config import RunConfig
from common.run_paths import RunPaths


def reward_settings(config: RunConfig, paths: RunPaths) -> RewardsConfig:
    """The section with what the run adds to its sources."""
    sources: list[AnyReward] = []
    for source in config.rewards.sources:
        if source.kind == "judge" and source.cache is None:
            source = source.model_copy(update={"cache": str(paths.judge_answers)})
        if source.kind == "model" and source.path is None:
            source = source.model_copy(update={"chat_template": config.reward_model.chat_template})
        sources.append(source)
    return config.rewards.model_copy(update={"sources": sources})


def judge_keys(rewards: RewardsConfig) -> dict[str, str]:
    """The environment variables that hold API keys of judges."""
    names = [source.api_key_env for source in rewards.sources if source.kind == "judge"]
    return {name: os.environ[name] for name in names if name and name in os.environ}
