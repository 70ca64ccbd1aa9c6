"""A module that registers environments as RLlib's users do."""

import gymnasium
from ray.tune.registry import register_env

from tests.actors.environments import Countdown

register_env("countdown-of-rllib", lambda env_config: Countdown(**env_config))
gymnasium.register("CountdownOfGymnasium-v0", entry_point="tests.actors.environments:Countdown")
