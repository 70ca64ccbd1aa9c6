"""Rewards by a language model behind an OpenAI-compatible endpoint: a request is filled in from a template,
the score is read from the answer by a regular expression.

    request ─► cached answer, or chat/completions (several attempts) ─► pattern ─► score, or why there is none

Answers are cached by the whole request, so that a stage that is done again, or another run, asks only what
was never asked. What the cache holds is the judge's text: another pattern reads it anew.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from actors.child_process import MAX_REASON_CHARACTERS
from actors.reward_config import JudgeReward
from actors.text_rewards import RewardRequest, RewardResult, TextReward, attempt_all, json_of
from common.errors import UserError
from common.network import is_loopback_url
from learners.data.conversations import as_messages

TEMPLATE = """You compare answers of an assistant by one rubric.

Rubric: {rubric}

Conversation:
{prompt}

Answer to judge:
{response}

Think briefly, then write one last line "Score: N", where N is a number from 1 (worst) to 10 (best)."""
FIELD = re.compile(r"\{(rubric|prompt|response|row\.[^{}]+)\}")
CACHE_TIMEOUT_S = 60.0


class JudgeTextReward(TextReward):
    """An endpoint, the threads that call it, and the answers so far."""

    def __init__(self, config: JudgeReward) -> None:
        """Raises UserError for a template that cannot be used, or for an API key that is not set."""
        self.config, self.template = config, read_template(config)
        self.pattern = re.compile(config.pattern)
        headers = {}
        if config.api_key_env is not None:
            headers["authorization"] = f"Bearer {api_key(config)}"
        limits = httpx.Limits(max_connections=config.concurrency)
        # A proxy of the environment cannot reach an endpoint of this machine.
        direct = is_loopback_url(config.base_url)
        self._client = httpx.Client(
            timeout=config.timeout_s, limits=limits, trust_env=not direct, headers=headers
        )
        self._pool = ThreadPoolExecutor(config.concurrency, thread_name_prefix="judge")
        self._cache = AnswerCache(Path(config.cache)) if config.cache else None

    def submit(self, requests: Sequence[RewardRequest]) -> list[Future[list[RewardResult]]]:
        return [self._pool.submit(self._judge, request) for request in requests]

    def _judge(self, request: RewardRequest) -> list[RewardResult]:
        """Never raises."""
        try:
            body = self._body(request)
        except KeyError as error:
            return [RewardResult(math.nan, f"the row has no key {error}, which the template names")]
        answer, failure = attempt_all(partial(self._answer, body), self.config.retries)
        if answer is None:
            return [RewardResult(math.nan, failure)]
        return [read_score(answer, self.pattern, *self.config.bounds)]

    def _body(self, request: RewardRequest) -> dict[str, Any]:
        text = fill_in(self.template, self.config.rubric, request)
        return {
            "temperature": 0,
            **self.config.request,
            "model": self.config.model,
            "max_tokens": self.config.max_tokens,
            "messages": [{"role": "user", "content": text}],
        }

    def _answer(self, body: dict[str, Any]) -> str:
        key = request_key(self.config.base_url, body)
        cached = self._cache.get(key) if self._cache else None
        if cached is not None:
            return cached
        url = f"{self.config.base_url.rstrip('/')}/chat/completions"
        answer = json_of(self._client.post(url, json=body))
        text = str(answer["choices"][0]["message"]["content"] or "")
        if self._cache:
            self._cache.put(key, text)
        return text


class AnswerCache:
    """Answers by request in an SQLite file, which the threads and actors of a host share."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(path, timeout=CACHE_TIMEOUT_S, check_same_thread=False)
        self._lock = threading.Lock()
        with self._lock, self._connection:
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS answers (request TEXT PRIMARY KEY, answer TEXT)"
            )

    def get(self, key: str) -> str | None:
        with self._lock:
            query = "SELECT answer FROM answers WHERE request = ?"
            row = self._connection.execute(query, (key,)).fetchone()
        return row[0] if row else None

    def put(self, key: str, answer: str) -> None:
        with self._lock, self._connection:
            self._connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, answer))


def request_key(base_url: str, body: Mapping[str, Any]) -> str:
    """Of an endpoint and all that is sent to it."""
    return hashlib.sha256(json.dumps([base_url, body], sort_keys=True).encode()).hexdigest()


def read_template(config: JudgeReward) -> str:
    """The text of the template. Raises UserError if its file is missing, or does not name the response."""
    if config.template is None:
        return TEMPLATE
    path = Path(config.template)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"rewards.sources.template={path}: not a text file that can be read ({error})"
        ) from None
    if "{response}" not in text:
        raise UserError(
            f"rewards.sources.template={path}: it does not name {{response}}, so the judge would not see "
            "what it is to score; write {response} where the answer belongs"
        )
    return text


def api_key(config: JudgeReward) -> str:
    """Raises UserError if the environment variable is not set."""
    key = os.environ.get(config.api_key_env or "")
    if not key:
        raise UserError(
            f"rewards.sources.api_key_env={config.api_key_env}: no such environment variable is set; export "
            "it where `hero run` is called"
        )
    return key


def fill_in(template: str, rubric: str, request: RewardRequest) -> str:
    """The template with its fields. Raises KeyError for a key that the row does not have."""
    # In one pass: what is filled in may itself contain words in braces.
    return FIELD.sub(partial(_value, rubric, request), template)


def _value(rubric: str, request: RewardRequest, field: re.Match[str]) -> str:
    name = field[1]
    if name == "prompt":
        return conversation(request.row["prompt"])
    if name == "response":
        return request.response
    if name == "rubric":
        return rubric
    return str(request.row[name.removeprefix("row.")])


def conversation(prompt: Any) -> str:
    """A prompt as text: the only message alone, or all messages with their roles."""
    messages = as_messages(prompt)
    if len(messages) == 1:
        return str(messages[0]["content"])
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def read_score(answer: str, pattern: re.Pattern[str], low: float, high: float) -> RewardResult:
    """The score in an answer, or why there is none."""
    matches = list(pattern.finditer(answer))
    shown = repr(answer[-MAX_REASON_CHARACTERS:])
    if not matches:
        return RewardResult(math.nan, f"no match of {pattern.pattern!r} in the judge's answer {shown}")
    try:
        score = float(matches[-1][1])
    except (TypeError, ValueError):
        return RewardResult(math.nan, f"{matches[-1][1]!r} in the judge's answer is no number")
    if not low <= score <= high:
        return RewardResult(math.nan, f"the judge's score {score:g} is not from {low:g} to {high:g}")
    return RewardResult(score)
