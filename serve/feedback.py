"""What people think of answers: rankings, thumbs and comments, kept for the next round of training.

RUN/feedback/rankings.jsonl   rankings with consent, as `RankingRecord`s: a source for data.rankings
RUN/feedback/other.jsonl      everything else: thumbs and comments, and rankings without consent
"""

from __future__ import annotations

import time
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from common.files import append_row
from common.run_paths import RunPaths
from learners.data.records import RankingRecord

GROUP = "public"
"""Group of the labels of whoever uses the endpoint, as `label.vocabulary.Group` has it."""


class Message(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str = Field(max_length=100_000)


class Answer(BaseModel):
    """A response, and what generated it."""

    model_config = ConfigDict(extra="forbid")
    text: str = Field(max_length=100_000)
    ended: bool = True
    """Whether it ended by itself, not at the length limit."""
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
    """Rank of each answer: 1 is best, equal for ties. Needs two answers or more."""
    thumb: Literal["up", "down"] | None = None
    comment: str = Field("", max_length=10_000)
    labeler: str = Field("anonymous", min_length=1, max_length=100)
    """Who gave it; where keys are needed the name of the key stands before it."""
    consent: bool
    """Whether it may be used for training."""
    order: list[int] | None = None
    """The answers in the order in which they were shown, by their place in `answers`."""
    blind: bool = False
    """Whether models and versions were hidden, and the order was drawn by chance."""

    @model_validator(mode="after")
    def _check(self) -> Feedback:
        if self.messages[-1].role != "user" or not self.messages[-1].content.strip():
            raise ValueError("messages: the last must be the user's, and not empty")
        if self.order is not None and sorted(self.order) != list(range(len(self.answers))):
            raise ValueError(f"order: expected the places 0 to {len(self.answers) - 1}, each once")
        if self.ranks is None and self.thumb is None and not self.comment.strip():
            raise ValueError("give ranks, a thumb or a comment")
        if self.ranks is not None:
            # Refused now, with a message for the person, and not when the reward stage reads it.
            RankingRecord.parse(self.row())
        return self

    def row(self) -> dict[str, Any]:
        """The keys of a ranking (`RankingRecord`), and what only people give."""
        prompt: str | list[dict[str, Any]] = [message.model_dump() for message in self.messages]
        if len(self.messages) == 1:
            # As in the prompt file, so that both are the same prompt for every reader.
            prompt = self.messages[0].content
        shown: dict[str, Any] = {"blind": self.blind}
        if self.order is not None:
            shown["order"] = self.order
        return {
            "prompt": prompt,
            "responses": [answer.text for answer in self.answers],
            "ranks": self.ranks,
            "ended": [answer.ended for answer in self.answers],
            "labeler": self.labeler,
            "group": GROUP,
            "time": time.time(),
            "policy": [{"model": answer.model, "version": answer.version} for answer in self.answers],
            "decoding": [answer.decoding for answer in self.answers],
            "consent": self.consent,
            "thumb": self.thumb,
            "comment": self.comment,
            **shown,
        }


def store(paths: RunPaths, feedback: Feedback, key: str = "", signed_by: str = "") -> str:
    """Appends the feedback to its file, whose name it returns; a second time with the same key it is there
    already. `signed_by` is the name of the API key that it came with."""
    row, once = feedback.row(), None
    if signed_by:
        # A name that anybody can type is no identity; the key is.
        row["labeler"] = signed_by
        if feedback.labeler != "anonymous":
            row["labeler"] = f"{signed_by}/{feedback.labeler}"
    if key:
        row["feedback_key"], once = key, "feedback_key"
    # Only what may be trained on is in the file that data.rankings is pointed at.
    if feedback.ranks is not None and feedback.consent:
        append_row(paths.feedback_rankings, RankingRecord.parse(row).stored_row(), once)
        return paths.feedback_rankings.name
    append_row(paths.feedback_other, row, once)
    return paths.feedback_other.name
