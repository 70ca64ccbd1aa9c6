"""The questionnaire for people who join: questions of five sections, with the answers that are right.

    read     the guidelines, several options each
    flag     is this text sensitive?                         InstructGPT's criterion 1
    rank     responses with a known order                    criterion 2
    write    demonstrations, rated by two reviewers          criterion 3
    topic    how sure one is of a topic, 1 to 5, no score    criterion 4

A question's id is a hash of its text, so that answers stay with what was asked when the file changes.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from common.config import Section
from common.errors import UserError
from label.errors import BadInput
from label.submission import dense_ranks

SectionName = Literal["read", "flag", "rank", "write", "topic"]
SHUFFLED = ("flag", "rank", "write")
LEVELS = 5
"""Of the self-assessment."""


class Reading(Section):
    question: str
    options: list[str] = Field(min_length=2)
    right: int = Field(ge=1)
    """Number of the right option, from 1."""


class Flag(Section):
    text: str
    sensitive: bool


class Ranked(Section):
    prompt: str
    responses: list[str] = Field(min_length=2, max_length=9)
    """The best first, where `ranks` says nothing else."""
    ranks: list[int] | None = None

    @model_validator(mode="after")
    def _ranks(self) -> Ranked:
        if self.ranks is None:
            self.ranks = list(range(1, len(self.responses) + 1))
        if len(self.ranks) != len(self.responses):
            raise ValueError("as many ranks as responses are needed")
        return self


class Written(Section):
    prompt: str


class QuestionnaireFile(Section):
    reading: list[Reading] = Field([])
    flags: list[Flag] = Field([])
    rankings: list[Ranked] = Field([])
    demonstrations: list[Written] = Field([])
    topics: list[str] = Field([])


@dataclass(frozen=True)
class Question:
    id: str
    section: SectionName
    content: dict[str, Any]
    """What is shown."""
    right: Any = None
    """The known answer; never served."""

    def shown(self, seed: str) -> dict[str, Any]:
        """As the person sees it, with the responses of a ranking in an order of his or her own."""
        content = dict(self.content)
        if self.section == "rank":
            content["responses"] = [content["responses"][place] for place in self.order(seed)]
        return {"id": self.id, "section": self.section, **content}

    def order(self, seed: str) -> list[int]:
        order = list(range(len(self.content["responses"])))
        random.Random(f"{seed}:{self.id}").shuffle(order)
        return order

    def check(self, value: Any, seed: str) -> Any:
        """The answer as it is stored: ranks in the file's order. Raises BadInput."""
        if self.section == "flag" and not isinstance(value, bool):
            raise BadInput("value", "expected true (sensitive) or false")
        if self.section in ("read", "topic"):
            most = LEVELS if self.section == "topic" else len(self.content["options"])
            if type(value) is not int or not 1 <= value <= most:
                raise BadInput("value", f"expected a whole number from 1 to {most}")
        if self.section == "write" and not (isinstance(value, str) and value.strip()):
            raise BadInput("value", "expected a text that is not empty")
        if self.section == "rank":
            return self._in_file_order(value, seed)
        return value

    def _in_file_order(self, value: Any, seed: str) -> list[int]:
        order = self.order(seed)
        is_list = isinstance(value, list) and len(value) == len(order)
        if not is_list or not all(type(rank) is int and rank >= 1 for rank in value):
            raise BadInput("value", f"expected {len(order)} places from 1 (best), in the order shown")
        ranks = dense_ranks(dict(zip(map(str, order), value, strict=True)))
        return [ranks[str(place)] for place in range(len(order))]


class Questionnaire:
    """The questions of one file."""

    def __init__(self, content: QuestionnaireFile) -> None:
        self.questions = {question.id: question for question in _questions(content)}

    @classmethod
    def of_file(cls, file: Path) -> Questionnaire:
        """Raises UserError that names file and key."""
        if not file.is_file():
            raise UserError(f"label.screening.questionnaire={file}: no such file")
        try:
            return cls(QuestionnaireFile.model_validate(yaml.safe_load(file.read_text(encoding="utf-8"))))
        except yaml.YAMLError as error:
            raise UserError(f"{file}: not valid YAML ({error})") from None
        except ValidationError as error:
            problem = error.errors()[0]
            key = ".".join(str(part) for part in problem["loc"])
            raise UserError(f"{file}: {key}: {problem['msg']}") from None

    def of_section(self, section: SectionName) -> list[Question]:
        return [question for question in self.questions.values() if question.section == section]

    def in_order(self, seed: str) -> list[Question]:
        """Section by section, shuffled within those where a neighbour could tell the answer."""
        questions: list[Question] = []
        for section in ("read", "flag", "rank", "write", "topic"):
            part = self.of_section(section)  # type: ignore[arg-type]
            if section in SHUFFLED:
                random.Random(f"{seed}:{section}").shuffle(part)
            questions += part
        return questions


def _questions(content: QuestionnaireFile) -> Iterator[Question]:
    for reading in content.reading:
        if reading.right > len(reading.options):
            raise UserError(f"questionnaire: {reading.question!r} has no option {reading.right}")
        shown: dict[str, Any] = {"question": reading.question, "options": reading.options}
        yield _question("read", shown, reading.right)
    for flag in content.flags:
        yield _question("flag", {"text": flag.text}, flag.sensitive)
    for ranked in content.rankings:
        yield _question("rank", {"prompt": ranked.prompt, "responses": ranked.responses}, ranked.ranks)
    for written in content.demonstrations:
        yield _question("write", {"prompt": written.prompt})
    for topic in content.topics:
        yield _question("topic", {"topic": topic})


def _question(section: SectionName, content: dict[str, Any], right: Any = None) -> Question:
    sha = hashlib.sha256(repr((section, content)).encode()).hexdigest()
    return Question(f"{section}-{sha[:12]}", section, content, right)
