"""Checks of the functions of the user's that a config names. They import them, and a job carries what is
imported."""

from __future__ import annotations

from actors.judge_rewards import api_key, read_template
from actors.reward_config import AnyReward
from cluster.config import RunConfig
from cluster.rounds.config import AnyJudge
from cluster.rounds.plan import STAGES as ROUND_STAGES
from cluster.sampling_config import SOURCE
from common.errors import UserError
from common.plugins import import_user_module, load_function


def _all_stages(config: RunConfig) -> set[str]:
    """Those of the run, and of its rounds."""
    return {*config.stages, *(ROUND_STAGES if "rounds" in config.model_fields_set else ())}


def check_reward_functions(config: RunConfig) -> None:
    if not {"best_of_n", "ppo", "evaluate"}.intersection(_all_stages(config)):
        return
    if config.environment is not None and ":" in config.environment.name:
        check_environment_module(config.environment.name)
    for source in config.rewards.sources:
        check_source(source, "rewards.sources")


def check_source(source: AnyReward | AnyJudge, key: str) -> None:
    """A function exists; a judge's template and API key can be read."""
    if source.kind == "function":
        load_function(source.path, f"{key}.path", "row", "response", "ended")
    elif source.kind == "judge":
        read_template(source)
        if source.api_key_env:
            api_key(source)


def check_environment_module(name: str) -> None:
    """The module can be imported; its environment is made by the workers."""
    import_user_module(name.partition(":")[0], f"environment.name={name}")


def check_judge(config: RunConfig) -> None:
    """The function or the reward source exists, where a stage asks it."""
    if not {"reward", "dpo", "ppo", "evaluate"}.intersection(_all_stages(config)):
        return
    if config.evaluate.judge_function:
        load_function(config.evaluate.judge_function, "evaluate.judge", "row", "response", "ended")
    source = config.evaluate.judge_source
    columns = [f"{SOURCE}{name}" for name in config.rewards.separate_names.values()]
    if source and source not in columns:
        there = f"there are {', '.join(columns)}" if columns else "there is none"
        raise UserError(f"evaluate.judge={source}: no source of rewards beside the reward itself; {there}")


def check_round_judge(config: RunConfig) -> None:
    """Raises UserError, hours before it is asked, for a judge that cannot work."""
    if config.rounds.judge is not None:
        check_source(config.rounds.judge, "rounds.judge")
