"""A terminal chat with a served policy, streaming. Reads lines from a pipe as well. A key comes from OPENAI_API_KEY."""

from __future__ import annotations

import os
import sys
from typing import Any

from openai import APIConnectionError, APIStatusError, OpenAI
from rich.console import Console
from rich.prompt import Prompt

from common.errors import UserError

HELP = "/reset forgets the conversation, /quit leaves, Ctrl-C stops an answer"


def chat(url: str, model: str | None, system: str | None, temperature: float, console: Console) -> None:
    """Talks until /quit or the end of input. Raises UserError if nothing answers at `url`."""
    client = OpenAI(base_url=url, api_key=os.environ.get("OPENAI_API_KEY", "none"), max_retries=0)
    try:
        model = model or client.models.list().data[0].id
    except APIConnectionError:
        raise UserError(f"{url}: nothing answers there; start the endpoint with `hero serve RUN`") from None
    except APIStatusError as fault:
        raise UserError(
            f"{url}: answered {fault.status_code} instead of a list of models; the URL should end in /v1"
        ) from None
    opening: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
    tty = sys.stdin.isatty()
    if tty:
        console.print(f"talking to [bold]{model}[/] at {url}; {HELP}")
    while (said := _read(console, tty)) is not None:
        if said in ("/quit", "/exit"):
            return
        if said == "/reset":
            messages = list(opening)
            continue
        if said:
            messages.append({"role": "user", "content": said})
            messages.append(
                {"role": "assistant", "content": _answer(client, model, messages, temperature, console)}
            )


def _read(console: Console, tty: bool) -> str | None:
    try:
        return Prompt.ask("[bold green]you[/]", console=console).strip() if tty else input().strip()
    except (EOFError, KeyboardInterrupt):
        return None


def _answer(client: OpenAI, model: str, messages: list[Any], temperature: float, console: Console) -> str:
    """Streams one answer to the terminal and returns it; Ctrl-C keeps what has come so far."""
    said = ""
    try:
        stream: Any = client.chat.completions.create(
            model=model, messages=messages, temperature=temperature, stream=True
        )
        for chunk in stream:
            piece = chunk.choices[0].delta.content or "" if chunk.choices else ""
            said += piece
            console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
    except APIStatusError as fault:
        console.print(f"[red]{fault.status_code}: {fault.message}[/]", end="")
    except KeyboardInterrupt:
        stream.close()
    console.print()
    return said
