"""From the text of a turn to the message that an environment takes, by vLLM's tool parsers: the same ones
that read the answers of the served endpoint.

vLLM is imported inside the function, as in `actors.vllm_engine`."""

from __future__ import annotations

import json
from typing import Any

from transformers import PreTrainedTokenizerBase

from common.errors import UserError


class ToolCallReader:
    """A parser and its tokenizer; with no parser every turn is words alone."""

    def __init__(self, parser: str | None, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises UserError if vLLM has no such parser, or it cannot work with the tokenizer."""
        self._parser_class: Any = None
        self._tokenizer = tokenizer
        if parser is None:
            return
        from vllm.tool_parsers import ToolParserManager

        try:
            self._parser_class = ToolParserManager.get_tool_parser(parser)
            self._parser_class(tokenizer)
        except KeyError:
            names = ", ".join(ToolParserManager.list_registered())
            raise UserError(
                f"environment.tool_parser={parser}: vLLM has no such parser; choose one of {names}"
            ) from None
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"environment.tool_parser={parser}: it does not fit the policy's tokenizer ({error})"
            ) from None

    def message(self, text: str) -> dict[str, Any]:
        """The assistant's message: content, and tool_calls if there are any. Arguments that are no JSON
        object stay the text that they are."""
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if self._parser_class is None:
            return message
        extracted = self._parser_class(self._tokenizer).extract_tool_calls(text, _Request())
        if not extracted.tools_called:
            return message
        calls = []
        for number, call in enumerate(extracted.tool_calls):
            function = {"name": call.function.name, "arguments": _arguments(call.function.arguments)}
            # Numbered, since vLLM's random ids would differ in a repeated run.
            calls.append({"id": f"call{number:05d}", "type": "function", "function": function})
        return {**message, "content": extracted.content or "", "tool_calls": calls}


class _Request:
    """What parsers read of a request: which tools it offers. Those here take any name, and the environment
    answers to an unknown one."""

    tools: list[Any] | None = None
    tool_choice = "auto"
    skip_special_tokens = False


def _arguments(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, dict) else text
