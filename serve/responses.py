"""The responses protocol of OpenAI on vLLM's handler of it, mended where that leaves something out without
a word or fails on what the protocol allows.

Imported only where an engine runs, since it needs vLLM.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from openai.types.responses import ResponseErrorEvent, ResponseFunctionToolCallOutputItem
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest, ResponsesResponse
from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
from vllm.exceptions import VLLMValidationError

from serve.request_stats import joined_versions
from serve.vllm_messages import NOT_STORED

logger = logging.getLogger(__name__)


class VersionedResponses(OpenAIServingResponses):
    """Adds `system_fingerprint` to answers, which this protocol has no field for, and refuses what would
    be left out without a word."""

    def _validate_create_responses_input(self, request: ResponsesRequest) -> Any:
        for name, field in ResponsesRequest.model_fields.items():
            # null is what is left out; vLLM takes it, and breaks a stream off whose events repeat it.
            if getattr(request, name) is None:
                setattr(request, name, field.get_default(call_default_factory=True))
        if unsupported := self._unsupported(request):
            return self.create_error_response(unsupported, err_type="invalid_request_error")
        return super()._validate_create_responses_input(request)

    def _unsupported(self, request: ResponsesRequest) -> str:
        """What vLLM would leave out of the request; empty if nothing."""
        kinds = {tool.type for tool in request.tools} - {"function"}
        if kinds and self.tool_server is None:
            return f"tools of type {', '.join(sorted(kinds))} are not offered here; only functions are"
        if request.tools and request.tool_choice != "none" and not (self.parser and self.enable_auto_tools):
            return "tools require --enable-auto-tool-choice and --tool-call-parser to be set"
        if (request.model_extra or {}).get("conversation") is not None:
            return NOT_STORED
        for index, item in enumerate(_items(request)):
            parts = _parts(item)
            # vLLM reads the text of the first part alone: it fails on a refusal or no part at all, and
            # passes further parts over.
            if parts is not None and parts not in TEXT_PARTS:
                found = ", ".join(parts) or "no part"
                return f"input[{index}]: an answer of the assistant is one text; this one has {found}"
        return ""

    async def _render_resolved_response_inputs(self, request: ResponsesRequest, *args: Any) -> Any:
        """The prompt of a request, or vLLM's error answer."""
        for item in _items(request):
            # vLLM hands the parts of a tool's output on as objects, where its renderer reads dicts.
            if isinstance(item, ResponseFunctionToolCallOutputItem) and not isinstance(item.output, str):
                item.output = [part.model_dump(exclude_none=True) for part in item.output]  # type: ignore[misc]
        try:
            return await super()._render_resolved_response_inputs(request, *args)
        except (AssertionError, AttributeError, LookupError) as error:
            # Only the request is read here, whose items have some thirty forms: what is wrong is in it.
            reason = f"no prompt can be made of it ({type(error).__name__}: {error})"
            raise VLLMValidationError(reason, parameter="input") from error

    async def responses_stream_generator(self, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        """The events of a streamed answer. What the engine refuses is the last one, as in vLLM's streams of
        chat answers; here vLLM would break the connection off without a word."""
        sent = 0
        async with aclosing(super().responses_stream_generator(*args, **kwargs)) as events:
            try:
                async for event in events:
                    yield event
                    sent += 1
            except Exception as error:
                refusal = self.create_error_response(error).error
                if refusal.code >= 500:  # a fault of ours, which the client alone would hear of
                    logger.exception("a stream of /v1/responses failed")
                yield ResponseErrorEvent(
                    type="error",
                    code=refusal.type,
                    message=refusal.message,
                    param=refusal.param,
                    sequence_number=sent,
                )

    def _make_not_found_error(self, response_id: str) -> Any:
        error = super()._make_not_found_error(response_id)
        error.error.message = f"{error.error.message.rstrip('.')}: {NOT_STORED}"
        return error

    async def responses_full_generator(self, *args: Any, **kwargs: Any) -> Any:
        response = await super().responses_full_generator(*args, **kwargs)
        if isinstance(response, ResponsesResponse):
            response.system_fingerprint = joined_versions()  # type: ignore[attr-defined]
        return response


TEXT_PARTS = (["output_text"], ["input_text"], ["text"])
"""What an assistant's message in a request may consist of, where it is no string."""


def _items(request: ResponsesRequest) -> list[Any]:
    """The items of a request's input; none where it is a text."""
    return [] if isinstance(request.input, str) else request.input


def _parts(item: Any) -> list[str] | None:
    """The types of the parts of an assistant's message in a request; None for another item, or a
    string."""
    values = item if isinstance(item, dict) else vars(item)
    content = values.get("content")
    if values.get("role") != "assistant" or not isinstance(content, list):
        return None
    kinds = []
    for part in content:
        fields = part if isinstance(part, dict) else vars(part)
        kinds.append(str(fields.get("type", "a part without a type")))
    return kinds
