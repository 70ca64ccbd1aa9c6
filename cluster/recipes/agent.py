"""An agent that knows nothing of this project: OpenAI's client, a loop over tool calls, a number at the end.

`environment: {name: "cluster.recipes.agent:solve"}` with `rollout.endpoint: true` trains the policy in it."""

from __future__ import annotations

import json
from typing import Any

from openai import OpenAI

from actors.environments.tools import Tool
from cluster.recipes.sums import TOOLS, grade

MOST_REQUESTS = 6


def solve(row: dict[str, Any], base_url: str, api_key: str) -> float:
    """1 if the policy finds the sum of the row by tools, else 0."""
    client = OpenAI(base_url=base_url, api_key=api_key, max_retries=0)
    tools = {function.__name__: Tool(function) for function in TOOLS}
    schemas: list[Any] = [tool.schema for tool in tools.values()]
    messages: list[Any] = [{"role": "user", "content": row["prompt"]}]
    for _ in range(MOST_REQUESTS):
        reply = client.chat.completions.create(model="policy", messages=messages, tools=schemas)
        message = reply.choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        if not message.tool_calls:
            return grade(row, message.content or "", True)
        for call in message.tool_calls:
            text = f"error: there is no tool {call.function.name}"
            if call.function.name in tools:
                text, _ = tools[call.function.name].call(json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": text})
    return 0.0
