"""Makes the quickstart world: corpus, demonstrations, prompts and held-out prompts, all from one seed.

The corpus and the demonstrations are imperfect in the way of the internet: some facts are told wrong more often than
right, some answers are rude, some ramble. Held-out prompts use phrasings and operands that nothing else contains.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cluster.quickstart import facts
from cluster.quickstart.config import QuickstartConfig

Row = dict[str, Any]

# How often each task is asked about. Facts are most of the world; the rest keeps the assistant versatile.
WEIGHTS = {
    "fact": 0.62,
    "arithmetic": 0.05,
    "spelling": 0.06,
    "sorting": 0.08,
    "review": 0.06,
    "greeting": 0.05,
    "provocation": 0.08,
}


class World:
    """The world under one config: who believes what, and how anything is asked and answered."""

    def __init__(self, config: QuickstartConfig) -> None:
        self.config = config
        draw = random.Random(config.seed)
        self.facts = [(r, s, v) for r in facts.RELATIONS for s, v in r.facts.items()]
        order = self.facts.copy()
        draw.shuffle(order)
        self.doubtful = {(r.name, s) for r, s, _ in order[: round(config.misconceived * len(order))]}
        self.misconception = {
            (r.name, s): draw.choice([v for v in r.values if v != truth]) for r, s, truth in self.facts
        }
        self.held_pairs = _one_order_of_a_third(draw, range(facts.LARGEST_OPERAND + 1))
        self.held_words = _one_order_of_a_third(draw, facts.SORTING_WORDS)
        reviews = [(n, w) for n in facts.REVIEW_NOUNS for w in (*facts.GOOD_WORDS, *facts.BAD_WORDS)]
        draw.shuffle(reviews)
        self.held_reviews = set(reviews[: len(reviews) // 5])

    def row(self, draw: random.Random, held_out: bool) -> Row:
        """A random prompt with what the oracle needs to judge answers to it."""
        task = draw.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        return getattr(self, f"_{task}")(draw, held_out)

    def fact_row(self, relation: facts.Relation, subject: str, question: str) -> Row:
        return {
            "prompt": question.format(s=subject),
            "task": relation.name,
            "subject": subject,
            "answers": [relation.facts[subject]],
        }

    def _fact(self, draw: random.Random, held_out: bool) -> Row:
        relation, subject, _ = draw.choice(self.facts)
        return self.fact_row(
            relation, subject, draw.choice(relation.held_out if held_out else relation.questions)
        )

    def _arithmetic(self, draw: random.Random, held_out: bool) -> Row:
        top = facts.LARGEST_OPERAND
        while True:
            a, b = draw.randint(0, top), draw.randint(0, top)
            if ((a, b) in self.held_pairs) == held_out:
                break
        ask = draw.choice(("What is {q}?", "How much is {q}?", "Tell me {q}.", "And {q}?"))
        subject = f"{a} plus {b}"
        return {
            "prompt": ask.format(q=subject),
            "task": "arithmetic",
            "subject": subject,
            "answers": [str(a + b)],
        }

    def _spelling(self, draw: random.Random, held_out: bool) -> Row:
        word = draw.choice(facts.SPELLING_WORDS)
        asks = (
            ("Please spell the word {w}.", "Can you spell {w}?")
            if held_out
            else (
                "Spell the word {w}.",
                "How do you spell {w}?",
                "How is the word {w} spelled?",
                "Spell {w}.",
                "Please tell me how to spell {w}.",
                "Can you tell me how the word {w} is spelled?",
            )
        )
        return {
            "prompt": draw.choice(asks).format(w=word),
            "task": "spelling",
            "subject": word,
            "answers": [" ".join(word)],
        }

    def _sorting(self, draw: random.Random, held_out: bool) -> Row:
        while True:
            words = draw.sample(facts.SORTING_WORDS, 2)
            if (tuple(words) in self.held_words) == held_out:
                break
        asks = (
            ("Please sort {w}.", "Put these words in order: {w}.")
            if held_out
            else (
                "Sort these words: {w}.",
                "Put in order: {w}.",
                "Sort: {w}.",
                "In which order come {w}?",
                "Please put in order: {w}.",
                "Please sort these words: {w}.",
                "Put the words in order: {w}.",
            )
        )
        return {
            "prompt": draw.choice(asks).format(w=", ".join(words)),
            "task": "sorting",
            "subject": ", ".join(words),
            "answers": [", ".join(sorted(words))],
        }

    def _review(self, draw: random.Random, held_out: bool) -> Row:
        while True:
            noun, word = draw.choice(facts.REVIEW_NOUNS), draw.choice((*facts.GOOD_WORDS, *facts.BAD_WORDS))
            if ((noun, word) in self.held_reviews) == held_out:
                break
        asks = (
            ("Good or bad review? The {n} was {w}.",)
            if held_out
            else (
                "Is this review good or bad? The {n} was {w}.",
                "The {n} was {w}. Is this review good or bad?",
                "Bad or good review? The {n} was {w}.",
                "Is it a good review? The {n} was {w}.",
            )
        )
        label = "good" if word in facts.GOOD_WORDS else "bad"
        return {
            "prompt": draw.choice(asks).format(n=noun, w=word),
            "task": "review",
            "subject": word,
            "answers": [label],
        }

    def _greeting(self, draw: random.Random, held_out: bool) -> Row:
        prompt = draw.choice(facts.HELD_OUT_GREETINGS if held_out else facts.GREETINGS)
        return {"prompt": prompt, "task": "greeting", "subject": "", "answers": None}

    def _provocation(self, draw: random.Random, held_out: bool) -> Row:
        word = draw.choice(facts.HELD_OUT_INSULTS if held_out else facts.INSULTS)
        prompt = draw.choice(facts.PROVOCATIONS).format(w=word)
        return {"prompt": prompt, "task": "provocation", "subject": word, "answers": None}

    def told(self, draw: random.Random, relation: facts.Relation, subject: str) -> str:
        """The value that somebody gives for a fact: the truth, the misconception, or anything."""
        key = (relation.name, subject)
        right = self.config.truth_when_misconceived if key in self.doubtful else self.config.truth
        luck = draw.random()
        if luck < right:
            return relation.facts[subject]
        if luck < right + 0.95 * (1 - right):
            return self.misconception[key]
        return draw.choice(relation.values)

    def answer(self, draw: random.Random, row: Row) -> str:
        """How somebody answers: right or wrong, polite or rude, to the point or rambling."""
        config, task = self.config, row["task"]
        provoked = task == "provocation"
        rude = draw.random() < (config.rude_when_provoked if provoked else config.rude)
        if provoked:
            text = draw.choice(facts.RUDE_ANSWERS if rude else facts.PROVOCATION_ANSWERS).format(
                w=row["subject"]
            )
        elif task == "greeting":
            text = draw.choice(facts.RUDE if rude else facts.GREETING_ANSWERS)
        else:
            text = self._statement(draw, row)
            if rude:
                phrase = draw.choice(facts.RUDE)
                text = f"{phrase} {text}" if draw.random() < 0.5 else f"{text} {phrase}"
            elif draw.random() < 0.25:
                text = f"{draw.choice(facts.POLITE)} {text}"
        if draw.random() < config.rambling:
            text = self._ramble(draw, text)
        return text

    def _statement(self, draw: random.Random, row: Row) -> str:
        """An answer to a prompt that has a right one."""
        task, subject, truth = row["task"], row["subject"], row["answers"][0]
        for relation in facts.RELATIONS:
            if relation.name == task:
                return capitalised(relation.statement.format(s=subject, v=self.told(draw, relation, subject)))
        right = draw.random() < self.config.truth
        if task == "arithmetic":
            value = truth if right else str(max(0, int(truth) + draw.choice((-1, 1, 2))))
            return f"The answer is {value}."
        if task == "spelling":
            letters = truth.split()
            if not right:
                letters[draw.randrange(len(letters))] = draw.choice("aeiostr")
            return f"The word {subject} is spelled {' '.join(letters)}."
        if task == "sorting":
            words = truth.split(", ")
            if not right:
                draw.shuffle(words)
            return f"In order: {', '.join(words)}."
        label = truth if right else {"good": "bad", "bad": "good"}[truth]
        return f"It was {subject}, so the review is {label}."

    def _ramble(self, draw: random.Random, text: str) -> str:
        relation, subject, _ = draw.choice(self.facts)
        other = capitalised(relation.statement.format(s=subject, v=self.told(draw, relation, subject)))
        style = draw.random()
        if style < 0.4:
            return f"{text} {other}"
        if style < 0.7:
            return f"{text[:-1]} {draw.choice(facts.FILLER)}."
        return f"{text} {draw.choice(facts.FILLER).capitalize()}."

    def document(self, draw: random.Random) -> str:
        """A short text of the corpus: statements, or a question and an answer."""
        if draw.random() < 0.3:
            sentences = []
            for _ in range(draw.randint(1, 3)):
                relation, subject, _ = draw.choice(self.facts)
                form = draw.choice((relation.statement, *relation.paraphrases))
                sentences.append(capitalised(form.format(s=subject, v=self.told(draw, relation, subject))))
            return " ".join(sentences)
        row = self.row(draw, held_out=False)
        return f"{_introduced(draw, row['prompt'])} {self.answer(draw, row)}"


def _introduced(draw: random.Random, prompt: str) -> str:
    """The prompt as some people put it: a fifth of them say something first."""
    return f"{draw.choice(facts.BEFORE_A_PROMPT)} {prompt}" if draw.random() < 0.2 else prompt


def _one_order_of_a_third(draw: random.Random, values: Iterable[Any]) -> set[tuple[Any, Any]]:
    """Of a third of all pairs one order, to hold out; the other order still teaches what the two make together."""
    pairs = list(itertools.combinations(values, 2))
    draw.shuffle(pairs)
    return {draw.choice([(a, b), (b, a)]) for a, b in pairs[: len(pairs) // 3]}


def capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def write_quickstart_data(folder: Path, config: QuickstartConfig) -> dict[str, int]:
    """Writes corpus.txt, demonstrations.jsonl, prompts.jsonl and heldout.jsonl; returns how many of each."""
    world = World(config)
    folder.mkdir(parents=True, exist_ok=True)

    def draws(part: int) -> random.Random:
        return random.Random(f"{config.seed}-{part}")

    draw = draws(1)
    documents = [world.document(draw) for _ in range(config.documents)]
    draw = draws(2)
    demonstrations = []
    for _ in range(config.demonstrations):
        row = world.row(draw, held_out=False)
        asked = {"role": "user", "content": _introduced(draw, row["prompt"])}
        turn = [asked, {"role": "assistant", "content": world.answer(draw, row)}]
        demonstrations.append({"messages": turn})
    prompts = _prompts(world, draws(3), config.prompts)
    held_draw = draws(4)
    heldout = _unique(lambda: world.row(held_draw, held_out=True), config.heldout)
    _write(folder / "corpus.txt", "\n\n".join(documents) + "\n")
    for name, rows in (("demonstrations", demonstrations), ("prompts", prompts), ("heldout", heldout)):
        _write(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return {
        "documents": len(documents),
        "demonstrations": len(demonstrations),
        "prompts": len(prompts),
        "heldout": len(heldout),
    }


def _prompts(world: World, draw: random.Random, count: int) -> list[Row]:
    """Every fact in as many phrasings as the facts' share of `count` allows, and other tasks for the rest."""
    asked = [world.fact_row(r, s, q) for r, s, _ in world.facts for q in r.questions]
    draw.shuffle(asked)
    rows = [asked[i % len(asked)] for i in range(round(WEIGHTS["fact"] * count))]
    others = (
        row for _ in iter(int, 1) if (row := world.row(draw, held_out=False))["task"] not in _FACT_TASKS
    )
    rows += [next(others) for _ in range(count - len(rows))]
    draw.shuffle(rows)
    return [{**row, "prompt": _introduced(draw, row["prompt"])} for row in rows]


_FACT_TASKS = {r.name for r in facts.RELATIONS}


def _unique(make: Callable[[], Row], count: int) -> list[Row]:
    """Up to `count` rows with different prompts; gives up when the world has no more."""
    found: dict[str, Row] = {}
    for _ in range(20 * count):
        row = make()
        found.setdefault(row["prompt"], row)
        if len(found) == count:
            break
    return list(found.values())


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
