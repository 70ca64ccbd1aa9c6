"""Generates the data of the quickstart from one seed: corpus, demonstrations, prompts and held-out
prompts."""

from __future__ import annotations

import random

from cluster.quickstart.answers import AnswerSampler
from cluster.quickstart.config import QuickstartConfig
from cluster.quickstart.grammar import GRAMMAR
from cluster.quickstart.prompts import PromptSampler, Row, fact_row, with_introduction
from common.files import write_jsonl, write_text
from common.run_paths import RunPaths

# Each file has random numbers of its own, so that the size of one does not change another.
CORPUS, DEMONSTRATIONS, PROMPTS, HELD_OUT = 1, 2, 3, 4


class QuickstartWorld:
    """What is true, what people believe, and what is held out: the same for the same config."""

    def __init__(self, config: QuickstartConfig) -> None:
        rng = random.Random(config.seed)
        self.answers = AnswerSampler(config, rng)
        self.prompts = PromptSampler(rng)
        self.facts = self.prompts.facts

    def document(self, rng: random.Random) -> str:
        """A short text of the corpus: statements, or a question and an answer."""
        if rng.random() < 0.3:
            sentences = []
            for _ in range(rng.randint(1, 3)):
                fact = rng.choice(self.facts)
                template = rng.choice([fact.relation.statement, *fact.relation.paraphrases])
                sentences.append(self.answers.state_belief(rng, fact, template))
            return " ".join(sentences)
        row = self.prompts.sample(rng, held_out=False)
        question = with_introduction(rng, row["prompt"])
        return f"{question} {self.answers.sample(rng, row)}"

    def demonstration(self, rng: random.Random) -> Row:
        row = self.prompts.sample(rng, held_out=False)
        question = {"role": "user", "content": with_introduction(rng, row["prompt"])}
        answer = {"role": "assistant", "content": self.answers.sample(rng, row)}
        return {"messages": [question, answer]}

    def training_prompts(self, rng: random.Random, count: int) -> list[Row]:
        """The facts' share of `count` in as many phrasings as that allows; other tasks fill up."""
        fact_rows = []
        for fact in self.facts:
            for question in fact.relation.questions:
                fact_rows.append(fact_row(fact, question))
        rng.shuffle(fact_rows)
        rows = []
        for i in range(round(GRAMMAR.shares["fact"] * count)):
            rows.append(fact_rows[i % len(fact_rows)])
        # Facts have had their share, so only other tasks count from here on.
        relation_names = {relation.name for relation in GRAMMAR.relations}
        while len(rows) < count:
            row = self.prompts.sample(rng, held_out=False)
            if row["task"] not in relation_names:
                rows.append(row)
        rng.shuffle(rows)
        return [{**row, "prompt": with_introduction(rng, row["prompt"])} for row in rows]

    def held_out_prompts(self, rng: random.Random, count: int) -> list[Row]:
        """Up to `count` held-out prompts, no two of them equal."""
        rows: dict[str, Row] = {}
        # There are only so many different prompts, so the attempts are limited.
        for _ in range(20 * count):
            row = self.prompts.sample(rng, held_out=True)
            rows.setdefault(row["prompt"], row)
            if len(rows) == count:
                break
        return list(rows.values())


def write_quickstart_data(paths: RunPaths, config: QuickstartConfig) -> dict[str, int]:
    """Writes the data files of a run. Returns how many documents or rows each has.

    The held-out prompts are written last, so that all files are complete once these exist.
    """
    world = QuickstartWorld(config)
    rng = _file_rng(config, CORPUS)
    documents = [world.document(rng) for _ in range(config.documents)]
    write_text(paths.data("corpus"), "\n\n".join(documents) + "\n")
    rng = _file_rng(config, DEMONSTRATIONS)
    rows = {
        "demonstrations": [world.demonstration(rng) for _ in range(config.demonstrations)],
        "prompts": world.training_prompts(_file_rng(config, PROMPTS), config.prompts),
        "heldout": world.held_out_prompts(_file_rng(config, HELD_OUT), config.heldout),
    }
    counts = {"documents": len(documents)}
    for kind, kind_rows in rows.items():
        write_jsonl(paths.data(kind), kind_rows)
        counts[kind] = len(kind_rows)
    return counts


def _file_rng(config: QuickstartConfig, file: int) -> random.Random:
    return random.Random(f"{config.seed}-{file}")
