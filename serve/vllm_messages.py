"""vLLM's error messages in this project's words.

They tell whoever starts vLLM's own server which of its flags to set. Here the same settings are keys
of `serve.vllm`, and some have a key of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

TOOLS_EXAMPLE = "serve.vllm: {enable_auto_tool_choice: true, tool_call_parser: hermes}"
NOT_STORED = (
    "answers are not stored here, so `background`, `conversation` and `previous_response_id` cannot be used "
    "and no answer can be retrieved later; send the earlier turns in `input`"
)


def in_own_words(message: str, flags: Collection[str]) -> str:
    """The message with keys of this project for those of vLLM's `flags` (with their dashes) that it names."""
    if "VLLM_ENABLE_RESPONSES_API_STORE" in message:
        return NOT_STORED
    own = re.sub(r"--[a-z][a-z0-9-]*", lambda match: _key(match[0], flags), message)
    own = own.replace("the VLLM_MAX_N_SEQUENCES environment variable", "serve.max_choices")
    if "serve.vllm.tool_call_parser" in own:
        own += f", for example {TOOLS_EXAMPLE}"
    return own


def _key(flag: str, flags: Collection[str]) -> str:
    if flag not in flags:
        return flag  # what the client wrote
    return "serve.vllm." + flag.removeprefix("--").replace("-", "_")


class ErrorSend:
    """An ASGI `send` that passes answers on, errors in this project's words."""

    def __init__(self, send: Any, flags: Collection[str]) -> None:
        self.send, self.flags = send, flags
        self.start: Any = None
        self.body = b""

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            self.start = message  # held back, since it has the length of the body
        elif self.start is None:
            await self.send(message)
        else:
            self.body += message.get("body", b"")
            if not message.get("more_body"):
                await self._send_error()

    async def _send_error(self) -> None:
        body = self._translated()
        headers = [pair for pair in self.start["headers"] if pair[0] != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await self.send({**self.start, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    def _translated(self) -> bytes:
        try:
            answer = json.loads(self.body)
            answer["error"]["message"] = in_own_words(answer["error"]["message"], self.flags)
        except (ValueError, TypeError, KeyError):
            return self.body  # not an error of the OpenAI protocol
        return json.dumps(answer).encode()
