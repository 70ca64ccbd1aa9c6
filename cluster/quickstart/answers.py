"""Samples what people answer in the quickstart. They are imperfect in the way of the internet: some
facts are stated wrong more often than right, some answers are rude, some ramble."""

from __future__ import annotations

import random

from cluster.quickstart.config import QuickstartConfig
from cluster.quickstart.grammar import GRAMMAR, AnswerableTask, Relation, SmallTalk, fill
from cluster.quickstart.prompts import Fact, Row, all_facts

OPPOSITE_LABEL = {"good": "bad", "bad": "good"}


class AnswerSampler:
    """Samples answers. The wrong value that most people give for a fact is always the same one."""

    def __init__(self, config: QuickstartConfig, rng: random.Random) -> None:
        self.config = config
        self.facts = all_facts()
        shuffled = self.facts.copy()
        rng.shuffle(shuffled)
        self.misconceived: set[tuple[str, str]] = set()
        for fact in shuffled[: round(config.misconceived * len(shuffled))]:
            self.misconceived.add((fact.relation.name, fact.subject))
        # The other facts have misconceptions too; fewer people share those than know the truth.
        self.misconceptions: dict[tuple[str, str], str] = {}
        for fact in self.facts:
            wrong_values = [value for value in fact.relation.values() if value != fact.value]
            self.misconceptions[fact.relation.name, fact.subject] = rng.choice(wrong_values)

    def sample(self, rng: random.Random, row: Row) -> str:
        """An answer: right or wrong, polite or rude, to the point or rambling."""
        task = GRAMMAR.task(row["task"])
        rude_share = self.config.rude
        if task is GRAMMAR.provocation:
            rude_share = self.config.rude_when_provoked
        rude = rng.random() < rude_share
        if isinstance(task, SmallTalk):
            replies = task.polite_replies
            if rude:
                replies = task.rude_replies
            text = fill(rng.choice(replies), row["subject"])
        else:
            text = self._with_remark(rng, self._statement(rng, task, row), rude)
        if rng.random() < self.config.rambling:
            text = self._ramble(rng, text)
        return text

    def sample_belief(self, rng: random.Random, relation: Relation, subject: str) -> str:
        """The value that somebody gives for a fact: the truth, the misconception, or any value."""
        key = (relation.name, subject)
        truth_share = self.config.truth
        if key in self.misconceived:
            truth_share = self.config.truth_when_misconceived
        u = rng.random()
        if u < truth_share:
            return relation.facts[subject]
        # Nearly everybody who is wrong has the same misconception, which is what makes it one.
        if u < truth_share + 0.95 * (1 - truth_share):
            return self.misconceptions[key]
        return rng.choice(relation.values())

    def state_belief(self, rng: random.Random, fact: Fact, template: str) -> str:
        """The template's sentence about a fact, with the value that somebody gives for it."""
        return fill(template, fact.subject, self.sample_belief(rng, fact.relation, fact.subject))

    def _statement(self, rng: random.Random, task: AnswerableTask, row: Row) -> str:
        subject, value = row["subject"], row["answers"][0]
        if isinstance(task, Relation):
            value = self.sample_belief(rng, task, subject)
        elif rng.random() >= self.config.truth:
            value = _wrong_value(rng, row["task"], value)
        return task.state(subject, value)

    def _with_remark(self, rng: random.Random, text: str, rude: bool) -> str:
        if rude:
            remark = rng.choice(GRAMMAR.remarks.rude)
            if rng.random() < 0.5:
                return f"{remark} {text}"
            return f"{text} {remark}"
        if rng.random() < 0.25:
            return f"{rng.choice(GRAMMAR.remarks.polite)} {text}"
        return text

    def _ramble(self, rng: random.Random, text: str) -> str:
        fact = rng.choice(self.facts)
        other_statement = self.state_belief(rng, fact, fact.relation.statement)
        u = rng.random()
        if u < 0.4:
            return f"{text} {other_statement}"
        filler = rng.choice(GRAMMAR.remarks.filler)
        if u < 0.7:
            return f"{text[:-1]} {filler}."
        return f"{text} {filler.capitalize()}."


def _wrong_value(rng: random.Random, task: str, truth: str) -> str:
    """What somebody answers who does not know the answer. By chance it may be right."""
    if task == "arithmetic":
        return str(max(0, int(truth) + rng.choice((-1, 1, 2))))
    if task == "spelling":
        letters = truth.split()
        letters[rng.randrange(len(letters))] = rng.choice("aeiostr")
        return " ".join(letters)
    if task == "sorting":
        # Half of the time the shuffled order is the right one.
        words = truth.split(", ")
        rng.shuffle(words)
        return ", ".join(words)
    return OPPOSITE_LABEL[truth]
