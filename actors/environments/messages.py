"""What passes between the policy and an environment: texts or lists of messages, and their checks.

An environment says by its action space what it takes: `Messages` for an assistant's message as a dict
(with `tool_calls`, if a tool parser is set), anything else for the text of the turn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium

ROLES = ("system", "user", "assistant", "tool")

Message = dict[str, Any]
Observation = str | list[Message]


class Messages(gymnasium.Space[Any]):
    """The space of message lists, [{"role": …, "content": …}, …], of any length."""

    def __init__(self) -> None:
        super().__init__(None, None)

    def contains(self, x: Any) -> bool:
        return isinstance(x, list) and all(_is_message(message) for message in x)

    def sample(self, mask: Any = None, probability: Any = None) -> list[Message]:
        return [{"role": "user", "content": ""}]

    @property
    def is_np_flattenable(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "Messages()"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Messages)


class BadResultError(ValueError):
    """What an environment gave is none of its results; the message says what was expected."""


@dataclass(frozen=True)
class StepResult:
    """What `reset` or `step` gave, checked. A reset has no reward and is no end."""

    observation: Observation
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    info: dict[str, float] = field(default_factory=dict)
    """The numbers of `info`."""
    tools: list[dict[str, Any]] = field(default_factory=list)
    """JSON schemas of the tools that `reset` offers."""


def as_messages(observation: Observation) -> list[Message]:
    """A text is a message of the user's; an empty one is no message."""
    if isinstance(observation, str):
        return [{"role": "user", "content": observation}] if observation else []
    return observation


def checked_reset(result: Any) -> StepResult:
    """The result of `reset`. Raises BadResultError if it is none."""
    if not isinstance(result, tuple) or len(result) != 2:
        raise BadResultError(f"reset gave {_short(result)}; expected (observation, info)")
    observation, info = result
    tools = info.get("tools", []) if isinstance(info, Mapping) else []
    return StepResult(_observation(observation, "reset"), info=_numbers(info), tools=list(tools))


def checked_step(result: Any) -> StepResult:
    """The result of `step`. Raises BadResultError if it is none."""
    if not isinstance(result, tuple) or len(result) != 5:
        raise BadResultError(
            f"step gave {_short(result)}; expected (observation, reward, terminated, truncated, info)"
        )
    observation, reward, terminated, truncated, info = result
    if not hasattr(type(reward), "__float__") or not math.isfinite(float(reward)):
        raise BadResultError(f"step gave the reward {_short(reward)}; expected a finite number")
    return StepResult(
        _observation(observation, "step"), float(reward), bool(terminated), bool(truncated), _numbers(info)
    )


def _observation(observation: Any, method: str) -> Observation:
    if isinstance(observation, str):
        return observation
    if isinstance(observation, dict):
        observation = [observation]
    if isinstance(observation, (list, tuple)) and all(_is_message(message) for message in observation):
        return list(observation)
    raise BadResultError(
        f"{method} gave the observation {_short(observation)}; expected a text or messages like "
        '[{"role": "user", "content": …}]'
    )


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and message.get("role") in ROLES
        and (isinstance(message.get("content"), str) or bool(message.get("tool_calls")))
    )


def _numbers(info: Any) -> dict[str, float]:
    """What of an info is a number, to be averaged over episodes."""
    if not isinstance(info, Mapping):
        raise BadResultError(f"info is {_short(info)}; expected a dict")
    numbers = {}
    for name, value in info.items():
        if isinstance(name, str) and isinstance(value, (bool, int, float)) and math.isfinite(value):
            numbers[name] = float(value)
    return numbers


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"
