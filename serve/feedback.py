"""What people think of answers: thumbs, comments and rankings, kept for the next round of training.

RUN/feedback/rankings.jsonl   rankings in the format of the collect stage, given with consent: point data.rankings at it
RUN/feedback/other.jsonl      everything else: thumbs and comments, conversations of several turns, no consent
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from common.files import append_row
from learners.data.records import ranking


class Message(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str = Field(max_length=100_000)


class Answer(BaseModel):
    """A response, and what wrote it."""

    model_config = ConfigDict(extra="forbid")
    text: str = Field(max_length=100_000)
    ended: bool = True
    """Whether it closed by itself, not at the length limit."""
    version: str = Field(max_length=200)
    """What the endpoint reported: one version, or several with commas between them."""
    model: str = Field(max_length=200)
    decoding: dict[str, float | int | str | bool | list[str] | None] = Field({}, max_length=40)


class Feedback(BaseModel):
    """Feedback on one or several answers to a conversation."""

    model_config = ConfigDict(extra="forbid")
    messages: list[Message] = Field(min_length=1, max_length=200)
    answers: list[Answer] = Field(min_length=1, max_length=16)
    ranks: list[int] | None = None
    """Place of each answer: 1 is best, equal for ties. AdvantageSpec two answers or more."""
    thumb: Literal["up", "down"] | None = None
    comment: str = Field("", max_length=10_000)
    labeler: str = Field("anonymous", min_length=1, max_length=100)
    consent: bool
    """Whether it may be used for training."""

    @model_validator(mode="after")
    def _complete(self) -> Feedback:
        if self.messages[-1].role != "user" or not self.messages[-1].content.strip():
            raise ValueError("messages: the last must be the user's, and not empty")
        if self.ranks is None and self.thumb is None and not self.comment.strip():
            raise ValueError("give ranks, a thumb or a comment")
        if self.ranks is not None:
            ranking(self.row())  # raises ValueError where the reward stage could not read it
        return self

    def row(self) -> dict[str, Any]:
        """A line of the file: that of the collect stage, and what only people give."""
        return {
            "prompt": self.messages[-1].content,
            "responses": [a.text for a in self.answers],
            "ranks": self.ranks,
            "ended": [a.ended for a in self.answers],
            "labeler": self.labeler,
            "time": time.time(),
            "policy": [{"model": a.model, "version": a.version} for a in self.answers],
            "decoding": [a.decoding for a in self.answers],
            "consent": self.consent,
            "messages": [m.model_dump() for m in self.messages],
            "thumb": self.thumb,
            "comment": self.comment,
        }


def store(folder: Path, given: Feedback) -> str:
    """Appends the feedback to its file, whose name it returns."""
    # A ranking is trained on as the answer to its prompt alone, so a longer conversation would teach the wrong thing.
    usable = given.ranks is not None and given.consent and len(given.messages) == 1
    name = "rankings.jsonl" if usable else "other.jsonl"
    append_row(folder / name, given.row())
    return name
