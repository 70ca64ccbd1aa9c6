"""The sentences of the quickstart: what is asked and answered, and how an answer is read back.

relations.yaml and phrases.yaml hold the facts and the phrasings. The generator fills these templates
and the oracle parses answers by the same templates, so the two always agree on what a well-formed
answer is.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, field_validator


class Table(BaseModel):
    """An entry of the YAML files. A missing or unknown key is an error that names it."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Questions(Table):
    questions: list[str]
    """Phrasings of the training data."""
    held_out_questions: list[str] = []
    """Phrasings that only held-out prompts use; empty: the same as in training."""

    def phrasings(self, held_out: bool) -> list[str]:
        if held_out and self.held_out_questions:
            return self.held_out_questions
        return self.questions


class AnswerableTask(Questions, ABC):
    """Questions that have a right answer."""

    statement: str
    """The sentence of an answer, with {value} and perhaps {subject}."""

    @field_validator("statement")
    @classmethod
    def _check_statement(cls, statement: str) -> str:
        # A value at the start would be capitalised, and the oracle could not compare it.
        if statement.count("{value}") != 1 or statement.startswith("{value}"):
            raise ValueError(f"{statement!r} must have {{value}} once and not at its start")
        return statement

    @abstractmethod
    def value_pattern(self) -> str:
        """Regular expression of a well-formed value, right or wrong."""

    def state(self, subject: str, value: str) -> str:
        """The sentence that answers a question about `subject` with `value`."""
        return fill(self.statement, subject, value)

    def parse(self, subject: str, text: str) -> str | None:
        """The value that `text` states about `subject`; None if `text` is no such statement."""
        before, after = self.statement.replace("{subject}", subject).split("{value}")
        # Capitalised, as `state` does it with the whole sentence.
        pattern = f"{re.escape(capitalised(before))}({self.value_pattern()}){re.escape(after)}"
        match = re.fullmatch(pattern, text)
        return match and match[1]


class Relation(AnswerableTask):
    """Facts of one kind. Each is a pair of a subject and a value."""

    name: str
    paraphrases: list[str]
    """Other ways in which the corpus states a fact."""
    facts: dict[str, str]
    """subject -> value"""

    def values(self) -> list[str]:
        return sorted(set(self.facts.values()))

    def value_pattern(self) -> str:
        return "|".join(map(re.escape, self.values()))


class PatternTask(AnswerableTask):
    """A task whose answers are computed from the subject."""

    value: str

    def value_pattern(self) -> str:
        return self.value


class Arithmetic(PatternTask):
    largest_operand: int


class Spelling(PatternTask):
    words: list[str]


class Sorting(PatternTask):
    """The subject is two words, `pear, apple`."""

    words: list[str]

    def parse(self, subject: str, text: str) -> str | None:
        value = super().parse(subject, text)
        # In any order, but these words and no others.
        if value is None or sorted(value.split(", ")) != sorted(subject.split(", ")):
            return None
        return value


class Review(PatternTask):
    nouns: list[str]
    good_words: list[str]
    bad_words: list[str]


class SmallTalk(Questions):
    """Prompts that have replies, none of which is more right than another."""

    polite_replies: list[str]
    rude_replies: list[str]

    def is_reply(self, subject: str, text: str) -> bool:
        replies = [*self.polite_replies, *self.rude_replies]
        return any(fill(reply, subject) == text for reply in replies)


class Provocation(SmallTalk):
    insults: list[str]
    held_out_insults: list[str]


class Remarks(Table):
    """What is said besides a question or an answer."""

    introductions: list[str]
    polite: list[str]
    rude: list[str]
    filler: list[str]


class Grammar(Table):
    """Everything that is asked and answered in the quickstart."""

    shares: dict[str, float]
    """task -> how often a prompt is of that task"""
    relations: list[Relation]
    arithmetic: Arithmetic
    spelling: Spelling
    sorting: Sorting
    review: Review
    greeting: SmallTalk
    provocation: Provocation
    remarks: Remarks
    rude_words: list[str]
    rude_endings: list[str]

    def task(self, name: str) -> AnswerableTask | SmallTalk:
        """The task that a prompt row names: a relation, or one of the other tasks."""
        for relation in self.relations:
            if relation.name == name:
                return relation
        others: dict[str, AnswerableTask | SmallTalk] = {
            "arithmetic": self.arithmetic,
            "spelling": self.spelling,
            "sorting": self.sorting,
            "review": self.review,
            "greeting": self.greeting,
            "provocation": self.provocation,
        }
        return others[name]

    def is_rude(self, text: str) -> bool:
        lowered = text.lower()
        has_rude_word = any(word in lowered for word in self.rude_words)
        return has_rude_word or text.endswith(tuple(self.rude_endings))

    def without_remarks(self, text: str) -> str:
        """The text without one polite or rude remark before it and one after it."""
        # Only one on each side: an answer that says more is rambling, and that is not coherent.
        remarks = [*self.remarks.polite, *self.remarks.rude]
        for remark in remarks:
            if text.startswith(f"{remark} "):
                text = text.removeprefix(f"{remark} ")
                break
        for remark in remarks:
            if text.endswith(f" {remark}"):
                return text.removesuffix(f" {remark}")
        return text


def fill(template: str, subject: str, value: str = "", noun: str = "") -> str:
    """The template's sentence, which begins with a capital letter."""
    return capitalised(template.format(subject=subject, value=value, noun=noun))


def capitalised(text: str) -> str:
    # Not str.capitalize, which would turn "Paris" further on into "paris".
    return text[:1].upper() + text[1:]


def load_grammar() -> Grammar:
    folder = Path(__file__).parent
    relations = yaml.safe_load((folder / "relations.yaml").read_text(encoding="utf-8"))
    phrases = yaml.safe_load((folder / "phrases.yaml").read_text(encoding="utf-8"))
    return Grammar(relations=relations, **phrases)


# Read once: the tables are constants, and the oracle needs them for every response.
GRAMMAR = load_grammar()
