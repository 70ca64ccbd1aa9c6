"""What rollout actors get of a run's environment."""

from __future__ import annotations

from typing import Any

from actors.environments.config import EnvironmentSetup
from actors.environments.loading import registered_creator
from cluster.config import RunConfig


def rollout_target(config: RunConfig) -> str:
    """module:Class of the rollout actors."""
    if config.environment is None:
        return "actors.rollout:RolloutActor"
    return "actors.episode_rollout:EpisodeRolloutActor"


def environment_arguments(config: RunConfig) -> dict[str, Any]:
    """Arguments of the rollout actors beside those of an engine. Looks a name without a module up in the
    registry of the Ray cluster."""
    environment = config.environment
    if environment is None:
        return {}
    if config.rollout.endpoint:
        environment = environment.of_program()
    # Workers have no connection to Ray.
    registered = None if ":" in environment.name else registered_creator(environment.name)
    return {"environment": EnvironmentSetup(environment, config.model, registered)}
