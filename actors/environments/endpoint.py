"""An OpenAI-compatible endpoint that has an agent program drive an episode (`rollout.endpoint: true`).

    program ── POST /v1/chat/completions ──► ProgramEnvironment ──► observation ──► the policy's turn
       ◄──────── assistant's message ────────       step       ◄──── action ─────────┘
       └── returns a number ─► reward, end of the episode

A program that only knows `base_url` and `api_key` becomes an environment: what it asks next is the
observation, and what it is answered is the action. So tokens, log-probabilities and versions are those that
the engine sampled, never text that was sent to a program and encoded again. A request must go on where the
one before it ended: its messages begin with those of that request and the answer to it.

The endpoint listens on the worker's own host, for the programs of its process alone; each episode has a key.
"""

from __future__ import annotations

import contextlib
import json
import queue
import secrets
import threading
from collections.abc import Callable
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import gymnasium

from actors.environments.messages import Message, Messages
from actors.reward_worker import as_score
from common.plugins import load_function

PATH = "/v1/chat/completions"
MODEL = "policy"


class Refused(Exception):
    """A request that cannot be answered; the message goes to the program."""


class ProgramEnvironment(gymnasium.Env[list[Message], Message]):
    """Runs a function of the user's that talks to the policy by OpenAI's protocol."""

    observation_space = Messages()
    action_space = Messages()

    def __init__(self, program: str | Callable[..., Any], kwargs: dict[str, Any] | None = None) -> None:
        """`program` is a function, or its module:function, (row, base_url, api_key, **kwargs) -> number."""
        self._program = program
        if isinstance(program, str):
            self._program = load_function(program, "environment.name", "row", "base_url", "api_key")
        self._kwargs = kwargs or {}
        self._endpoint = shared_endpoint()
        self._episode: ProgramEpisode | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[list[Message], dict[str, Any]]:
        super().reset(seed=seed)
        if self._episode is not None:
            self._episode.end()
        row = (options or {}).get("row") or {}
        self._episode = ProgramEpisode(self._endpoint)
        arguments = {"row": row, "base_url": self._endpoint.base_url, "api_key": self._episode.key}
        self._episode.start(self._program, arguments | self._kwargs)
        request = self._episode.next_request()
        if not isinstance(request, dict):
            raise ValueError(f"the program returned {request!r} before it asked the policy anything")
        return request["messages"], {"tools": request.get("tools") or []}

    def step(self, action: Message) -> tuple[list[Message], float, bool, bool, dict[str, Any]]:
        assert self._episode is not None
        result = self._episode.answer(action)
        if isinstance(result, dict):
            return result["new"], 0.0, False, False, {}
        self._episode.end()
        return [], result, True, False, {"result": result}


class ProgramEpisode:
    """One run of a program, in a thread of its own."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.key = secrets.token_hex(16)
        self._endpoint = endpoint
        self._events: queue.SimpleQueue[dict[str, Any] | float | BaseException] = queue.SimpleQueue()
        """Requests of the program, then its result or its error."""
        self._answers: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._messages: list[Message] = []
        """Of the last request, with the answer to it."""
        self._asking = threading.Lock()
        self._is_over = False

    def start(self, program: Any, arguments: dict[str, Any]) -> None:
        self._endpoint.episodes[self.key] = self
        threading.Thread(target=self._run, args=(program, arguments), daemon=True).start()

    def next_request(self) -> dict[str, Any] | float:
        """What the program asks, or the number that it returns. Raises its error."""
        event = self._events.get()
        if isinstance(event, BaseException):
            raise event
        return event

    def answer(self, message: Message) -> dict[str, Any] | float:
        """Answers the last request; returns as `next_request` does."""
        self._messages = [*self._messages, message]
        self._answers.put(message)
        return self.next_request()

    def end(self) -> None:
        """A request that is still open, or comes later, is refused."""
        self._is_over = True
        self._endpoint.episodes.pop(self.key, None)
        self._answers.put(None)

    def ask(self, request: dict[str, Any]) -> Message:
        """The policy's message; waits for it. Called by the threads of the server. Raises Refused."""
        if not self._asking.acquire(blocking=False):
            raise Refused("one request at a time: the policy is writing the answer to another one")
        try:
            messages = request.get("messages")
            if not isinstance(messages, list) or not Messages().contains(messages):
                raise Refused("messages: expected a list of messages with role and content")
            known = len(self._messages)
            if [_words(message) for message in messages[:known]] != [_words(m) for m in self._messages]:
                raise Refused(
                    "messages: they do not begin with those of the request before and the answer to it; an "
                    "episode is one conversation that goes on"
                )
            self._messages = messages
            self._events.put({**request, "new": messages[known:]})
            answer = self._answers.get()
            if answer is None or self._is_over:
                raise Refused("the episode is over")
            return answer
        finally:
            self._asking.release()

    def _run(self, program: Any, arguments: dict[str, Any]) -> None:
        try:
            self._events.put(as_score(program(**arguments)) or 0.0)
        except BaseException as error:  # the user's code may raise anything, SystemExit too
            self._events.put(error)


def _words(message: Message) -> tuple[Any, ...]:
    """What makes two messages the same. Clients write an empty content as null, and arguments of calls as
    texts."""
    calls = []
    for call in message.get("tool_calls") or []:
        arguments = call["function"]["arguments"]
        if isinstance(arguments, str):
            with contextlib.suppress(ValueError):
                arguments = json.loads(arguments)
        calls.append((call["function"]["name"], json.dumps(arguments, sort_keys=True)))
    return message["role"], message.get("content") or "", tuple(calls)


class Endpoint:
    """The server of one process."""

    def __init__(self) -> None:
        self.episodes: dict[str, ProgramEpisode] = {}
        """By key."""
        handler = type("Handler", (_Handler,), {"endpoint": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.base_url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True, name="endpoint").start()


@cache
def shared_endpoint() -> Endpoint:
    """One for all environments of a process."""
    return Endpoint()


class _Handler(BaseHTTPRequestHandler):
    endpoint: Endpoint
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._send(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})
        else:
            self._refuse(404, f"no such path; there are {PATH} and /v1/models")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        episode = self.endpoint.episodes.get(
            (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        )
        if self.path != PATH:
            self._refuse(404, f"no such path; there are {PATH} and /v1/models")
        elif episode is None:
            self._refuse(401, "the key is that of no episode that runs")
        else:
            try:
                request = json.loads(body)
                self._complete(episode.ask(request), bool(request.get("stream")))
            except (Refused, ValueError, AttributeError) as error:
                self._refuse(400, str(error))

    def _complete(self, message: Message, stream: bool) -> None:
        message = _for_clients(message)
        reason = "tool_calls" if message.get("tool_calls") else "stop"
        reply = {"id": f"chatcmpl-{secrets.token_hex(8)}", "created": 0, "model": MODEL}
        if not stream:
            choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
            self._send(200, {**reply, "object": "chat.completion", "choices": [choice]})
            return
        # The whole message as one piece: it is complete when it comes from the engine.
        calls = [{**call, "index": i} for i, call in enumerate(message.get("tool_calls") or [])]
        delta = {**message, "tool_calls": calls} if calls else message
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        chunk = {**reply, "object": "chat.completion.chunk", "choices": [choice]}
        text = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
        self._write(200, "text/event-stream", text)

    def _refuse(self, status: int, reason: str) -> None:
        self._send(status, {"error": {"message": reason, "type": "invalid_request_error", "code": status}})

    def _send(self, status: int, value: dict[str, Any]) -> None:
        self._write(status, "application/json", json.dumps(value))

    def _write(self, status: int, kind: str, text: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Not into the log of the rollout actor."""


def _for_clients(message: Message) -> Message:
    """With arguments of calls as texts, as OpenAI's protocol has them."""
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        arguments = call["function"]["arguments"]
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments)
        calls.append({**call, "function": {**call["function"], "arguments": arguments}})
    return {**message, "content": message["content"] or None, "tool_calls": calls}
