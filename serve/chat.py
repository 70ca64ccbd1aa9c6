"""`hero chat`: a streaming chat with a served policy in the terminal. Reads lines from a pipe as
well.

The API key comes from the environment variable OPENAI_API_KEY.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from openai import APIConnectionError, APIError, APIStatusError, OpenAI
from rich.console import Console
from rich.prompt import Prompt

from common.errors import UserError

HELP = "/reset starts a new conversation, /quit leaves, Ctrl-C stops an answer"


def chat(url: str, model: str | None, system: str | None, temperature: float, console: Console) -> None:
    """Chats until /quit or the end of input, with the first served model if `model` is None.

    Raises UserError if no endpoint answers at `url`.
    """
    # Without retries: a person sees the error at once and can send the line again.
    client = OpenAI(base_url=url, api_key=os.environ.get("OPENAI_API_KEY", "none"), max_retries=0)
    if model is None:
        model = _first_model(client, url)
    opening: list[dict[str, str]] = []
    if system:
        opening = [{"role": "system", "content": system}]
    messages = list(opening)
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        console.print(f"talking to [bold]{model}[/] at {url}; {HELP}")
    while True:
        line = _read_line(console, is_terminal)
        if line is None or line in ("/quit", "/exit"):
            return
        if line == "/reset":
            messages = list(opening)
        elif line:
            messages.append({"role": "user", "content": line})
            answer = _stream_answer(client, model, messages, temperature, console)
            if answer:
                messages.append({"role": "assistant", "content": answer})
            else:
                messages.pop()  # asked in vain; the next line is a new question


def _first_model(client: OpenAI, url: str) -> str:
    try:
        return client.models.list().data[0].id
    except APIConnectionError:
        raise UserError(f"{url}: nothing answers there; start an endpoint with `hero serve RUN`") from None
    except APIStatusError as error:
        raise UserError(
            f"{url}: answered {error.status_code} instead of a list of models; the URL should end in /v1"
        ) from None


def _read_line(console: Console, is_terminal: bool) -> str | None:
    """The next line without surrounding space; None at the end of input or after Ctrl-C."""
    try:
        line = Prompt.ask("[bold green]you[/]", console=console) if is_terminal else input()
    except (EOFError, KeyboardInterrupt):
        return None
    # Bytes that are not in the terminal's encoding arrive as half surrogate pairs, which no request can hold.
    return line.encode(errors="replace").decode().strip()


def _stream_answer(
    client: OpenAI, model: str, messages: list[Any], temperature: float, console: Console
) -> str:
    """Prints one answer as it arrives and returns it; after Ctrl-C, the part that has arrived."""
    answer = ""
    settings: Any = {"model": model, "messages": messages, "temperature": temperature}
    try:
        with client.chat.completions.create(**settings, stream=True) as stream:
            for chunk in stream:
                if chunk.choices:  # the last chunk may hold only the usage
                    piece = chunk.choices[0].delta.content or ""
                    answer += piece
                    console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
    except KeyboardInterrupt:
        pass  # with the stream its connection is closed, which ends the request
    except APIError as error:
        reason = error.message
        if isinstance(error.body, dict):
            reason = error.body.get("message", reason)
        console.print(f"{client.base_url}: {reason}", style="red", markup=False, soft_wrap=True, end="")
    console.print()
    return answer
