"""Tools: plain Python functions with type hints and docstrings that the policy may call.

    def price(item: str) -> int:
        \"\"\"The price of an item in coins.

        Args:
            item: Its name.
        \"\"\"

A function becomes the JSON schema that chat templates and OpenAI's protocol take; arguments of a call are
checked against its type hints before it runs. What goes wrong in a call is an answer to the policy, not an
error of the run: a policy that learns writes many wrong calls.

`ToolEnvironment` is the environment of these: the policy calls tools until it answers without a call, and a
function grades the answer.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, cast

import gymnasium
from pydantic import TypeAdapter, ValidationError, validate_call

from actors.environments.messages import Message, Messages
from actors.reward_worker import as_score
from common.errors import UserError
from common.plugins import load_function, load_user_object

MAX_RESULT_CHARACTERS = 2000
ARGUMENT = re.compile(r"^\s*(\w+)(?:\s*\([^)]*\))?:\s*(.*)$")


class Tool:
    """A function that the policy may call."""

    def __init__(self, function: Callable[..., Any]) -> None:
        """Raises UserError for a function without a docstring or type hints."""
        self.function = function
        self.name = function.__name__
        self.schema = tool_schema(function)
        self._checked = validate_call(function)

    def call(self, arguments: Any) -> tuple[str, bool]:
        """(result as text, whether the call worked)."""
        if not isinstance(arguments, dict):
            return f"error: the arguments of {self.name} are not a JSON object", False
        try:
            value = self._checked(**arguments)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            return f"error: {self.name}: {where}: {first['msg']}", False
        except Exception as error:  # the user's code may raise anything
            return f"error: {type(error).__name__}: {error}"[:MAX_RESULT_CHARACTERS], False
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        return text[:MAX_RESULT_CHARACTERS], True


def tool_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """{"type": "function", "function": {"name", "description", "parameters"}}, as OpenAI's protocol has it.
    Raises UserError if the function has no docstring or an argument no type hint."""
    name = getattr(function, "__name__", repr(function))
    description, of_arguments = _docstring(function)
    if not description:
        raise UserError(f"tool {name}: it has no docstring; the policy learns from it what the tool does")
    for argument, parameter in inspect.signature(function).parameters.items():
        if parameter.annotation is inspect.Parameter.empty:
            raise UserError(f"tool {name}: argument {argument} has no type hint; expected for example a: int")
    # pydantic describes functions too, whatever its type hints say.
    adapter: TypeAdapter[Any] = TypeAdapter(cast(Any, function))
    parameters = _plain(adapter.json_schema())
    parameters.pop("additionalProperties", None)
    for argument, text in of_arguments.items():
        if argument in parameters["properties"]:
            parameters["properties"][argument]["description"] = text
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


def _docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """(what stands before "Args:", description of each argument)."""
    text, _, rest = (inspect.getdoc(function) or "").partition("Args:")
    descriptions: dict[str, str] = {}
    last = ""
    for line in rest.partition("Returns:")[0].splitlines():
        found = ARGUMENT.match(line)
        if found and found[1] in inspect.signature(function).parameters:
            last = found[1]
            descriptions[last] = found[2]
        elif last and line.strip():
            descriptions[last] += f" {line.strip()}"
    return " ".join(text.split()), descriptions


def _plain(schema: Any) -> Any:
    """Without the titles that pydantic adds, which would only make prompts longer."""
    if isinstance(schema, dict):
        return {
            key: _plain(value)
            for key, value in schema.items()
            if not (key == "title" and isinstance(value, str))
        }
    return schema


class ToolEnvironment(gymnasium.Env[list[Message], Message]):
    """The policy calls tools until it answers without a call; then the answer is graded."""

    observation_space = Messages()
    action_space = Messages()

    def __init__(
        self,
        tools: Sequence[str | Callable[..., Any]],
        reward: str | Callable[..., Any],
        system: str | None = None,
    ) -> None:
        """`tools` are functions or their module:function, and `reward` is a function (row, response, ended)
        -> number, as of rewards.sources. `system` is a message before the prompt of the row. Raises
        UserError if one of them cannot be loaded."""
        self.tools = {}
        for one in tools:
            function = load_user_object(one, "environment.kwargs.tools") if isinstance(one, str) else one
            tool = Tool(function)
            self.tools[tool.name] = tool
        self._grade = reward if callable(reward) else _load_grade(reward)
        self._system = system
        self._row: dict[str, Any] = {}
        self._calls = self._errors = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[list[Message], dict[str, Any]]:
        super().reset(seed=seed)
        self._row = (options or {}).get("row") or {}
        self._calls = self._errors = 0
        prompt = self._row.get("prompt", "")
        messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
        if self._system:
            messages = [{"role": "system", "content": self._system}, *messages]
        return messages, {"tools": [tool.schema for tool in self.tools.values()]}

    def step(self, action: Message) -> tuple[list[Message], float, bool, bool, dict[str, Any]]:
        calls = action.get("tool_calls") or []
        if calls:
            return [self._call(call) for call in calls], 0.0, False, False, self._info()
        score = as_score(self._grade(self._row, action["content"], True))
        return [], score or 0.0, True, False, {**self._info(), "graded": score or 0.0}

    def _info(self) -> dict[str, Any]:
        return {"tool_calls": self._calls, "tool_errors": self._errors}

    def _call(self, call: dict[str, Any]) -> Message:
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        self._calls += 1
        tool = self.tools.get(name)
        text, worked = f"error: there is no tool {name}; there are {', '.join(self.tools)}", False
        if tool is not None:
            text, worked = tool.call(arguments)
        self._errors += not worked
        return {"role": "tool", "name": name, "tool_call_id": call.get("id", ""), "content": text}


def _load_grade(path: str) -> Callable[..., Any]:
    return load_function(path, "environment.kwargs.reward", "row", "response", "ended")
