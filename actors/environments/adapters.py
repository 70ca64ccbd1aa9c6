"""Environments that others have written, in the form that the config names.

    form             environment.name                                  environment.kwargs
    reasoning-gym    "actors.environments.adapters:ReasoningGym"       {dataset: leg_counting}
    OpenEnv          "actors.environments.adapters:OpenEnv"            {base_url: "http://…"}

The packages are not among this project's: install the one that is used.
"""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.spaces import Text

from common.errors import UserError


class ReasoningGym(gymnasium.Env[str, str]):
    """One question and one answer, scored by the dataset (single turn: environment.turns: 1)."""

    observation_space = Text(100_000)
    action_space = Text(100_000)

    def __init__(self, dataset: str, size: int = 10_000, seed: int = 0, **kwargs: Any) -> None:
        """`dataset` is a name of reasoning-gym, `kwargs` its settings. The seed of an episode chooses one of
        `size` questions."""
        import reasoning_gym  # type: ignore[import-not-found]

        self._size = size
        self._dataset = reasoning_gym.create_dataset(dataset, size=size, seed=seed, **kwargs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self._entry = self._dataset[(seed or 0) % self._size]
        return self._entry["question"], {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        score = float(self._dataset.score_answer(action.strip(), self._entry))
        return "", score, True, False, {"score": score}


class OpenEnv(gymnasium.Env[str, str]):
    """A session with an OpenEnv server, by its generic client."""

    observation_space = Text(100_000)
    action_space = Text(100_000)

    def __init__(
        self, base_url: str, action_key: str = "message", observation_key: str = "text", **reset: Any
    ) -> None:
        """The text of a turn is sent as {action_key: text}; the observation's `observation_key` is the
        answer. `reset` are further arguments of the server's reset."""
        from openenv.core.generic_client import GenericEnvClient  # type: ignore[import-not-found]

        self._client = GenericEnvClient(base_url=base_url).sync()
        self._action_key, self._observation_key, self._reset = action_key, observation_key, reset

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        result = self._client.reset(seed=seed, **self._reset)
        return self._text(result.observation), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        result = self._client.step({self._action_key: action})
        return self._text(result.observation), float(result.reward or 0.0), bool(result.done), False, {}

    def _text(self, observation: dict[str, Any]) -> str:
        if self._observation_key not in observation:
            raise UserError(
                f"environment.kwargs.observation_key={self._observation_key}: the server's observation has "
                f"{', '.join(observation)}"
            )
        return str(observation[self._observation_key])
