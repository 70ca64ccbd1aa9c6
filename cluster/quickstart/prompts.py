"""Samples the prompts of the quickstart, each with what the oracle needs to judge a response.

A prompt row holds `prompt`, `task` (the name of a relation or of another task), `subject` and
`answers`, which is None where there is no right answer. Held-out prompts use phrasings, operands or
words that no training data uses.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from cluster.quickstart.grammar import GRAMMAR, Relation, fill

Row = dict[str, Any]


@dataclass(frozen=True)
class Fact:
    relation: Relation
    subject: str
    value: str


def all_facts() -> list[Fact]:
    facts = []
    for relation in GRAMMAR.relations:
        for subject, value in relation.facts.items():
            facts.append(Fact(relation, subject, value))
    return facts


def prompt_row(task: str, prompt: str, subject: str, answer: str | None) -> Row:
    answers = None
    if answer is not None:
        answers = [answer]
    return {"prompt": prompt, "task": task, "subject": subject, "answers": answers}


def fact_row(fact: Fact, question: str) -> Row:
    return prompt_row(fact.relation.name, fill(question, fact.subject), fact.subject, fact.value)


class PromptSampler:
    """Samples prompts of all tasks, each task as often as the grammar says."""

    def __init__(self, rng: random.Random) -> None:
        # The order of the draws is part of the data: another order is other data for the same seed.
        self.facts = all_facts()
        operands = range(GRAMMAR.arithmetic.largest_operand + 1)
        self.held_out_operands = choose_held_out_pairs(rng, operands)
        self.held_out_words = choose_held_out_pairs(rng, GRAMMAR.sorting.words)
        review = GRAMMAR.review
        self.review_words = [*review.good_words, *review.bad_words]
        reviews = list(itertools.product(review.nouns, self.review_words))
        rng.shuffle(reviews)
        self.held_out_reviews = set(reviews[: len(reviews) // 5])
        self.samplers = {
            "fact": self._fact,
            "arithmetic": self._arithmetic,
            "spelling": self._spelling,
            "sorting": self._sorting,
            "review": self._review,
            "greeting": self._greeting,
            "provocation": self._provocation,
        }

    def sample(self, rng: random.Random, held_out: bool) -> Row:
        tasks, shares = list(GRAMMAR.shares), list(GRAMMAR.shares.values())
        task = rng.choices(tasks, shares)[0]
        return self.samplers[task](rng, held_out)

    def _fact(self, rng: random.Random, held_out: bool) -> Row:
        fact = rng.choice(self.facts)
        return fact_row(fact, rng.choice(fact.relation.phrasings(held_out)))

    def _arithmetic(self, rng: random.Random, held_out: bool) -> Row:
        # Held out by operands: new phrasings alone would not show that the policy can add.
        task = GRAMMAR.arithmetic
        while True:
            a, b = rng.randint(0, task.largest_operand), rng.randint(0, task.largest_operand)
            if ((a, b) in self.held_out_operands) == held_out:
                break
        subject = f"{a} plus {b}"
        question = rng.choice(task.phrasings(held_out))
        return prompt_row("arithmetic", fill(question, subject), subject, str(a + b))

    def _spelling(self, rng: random.Random, held_out: bool) -> Row:
        word = rng.choice(GRAMMAR.spelling.words)
        question = rng.choice(GRAMMAR.spelling.phrasings(held_out))
        return prompt_row("spelling", fill(question, word), word, " ".join(word))

    def _sorting(self, rng: random.Random, held_out: bool) -> Row:
        task = GRAMMAR.sorting
        while True:
            words = rng.sample(task.words, 2)
            if (tuple(words) in self.held_out_words) == held_out:
                break
        subject = ", ".join(words)
        question = rng.choice(task.phrasings(held_out))
        return prompt_row("sorting", fill(question, subject), subject, ", ".join(sorted(words)))

    def _review(self, rng: random.Random, held_out: bool) -> Row:
        task = GRAMMAR.review
        while True:
            noun, word = rng.choice(task.nouns), rng.choice(self.review_words)
            if ((noun, word) in self.held_out_reviews) == held_out:
                break
        question = rng.choice(task.phrasings(held_out))
        label = "bad"
        if word in task.good_words:
            label = "good"
        return prompt_row("review", fill(question, word, noun=noun), word, label)

    def _greeting(self, rng: random.Random, held_out: bool) -> Row:
        prompt = rng.choice(GRAMMAR.greeting.phrasings(held_out))
        return prompt_row("greeting", prompt, "", None)

    def _provocation(self, rng: random.Random, held_out: bool) -> Row:
        # Held out by insults, with the phrasings of training.
        task = GRAMMAR.provocation
        insults = task.insults
        if held_out:
            insults = task.held_out_insults
        word = rng.choice(insults)
        question = rng.choice(task.phrasings(held_out))
        return prompt_row("provocation", fill(question, word), word, None)


def choose_held_out_pairs(rng: random.Random, values: Iterable[Any]) -> set[tuple[Any, Any]]:
    """A third of all unordered pairs, each in one of its two orders."""
    pairs = list(itertools.combinations(values, 2))
    rng.shuffle(pairs)
    held_out = set()
    for a, b in pairs[: len(pairs) // 3]:
        # The other order stays in training, where it teaches the answer that both orders share.
        held_out.add(rng.choice([(a, b), (b, a)]))
    return held_out


def with_introduction(rng: random.Random, prompt: str) -> str:
    """The prompt; in a fifth of all calls, something is said before it."""
    if rng.random() < 0.2:
        return f"{rng.choice(GRAMMAR.remarks.introductions)} {prompt}"
    return prompt
