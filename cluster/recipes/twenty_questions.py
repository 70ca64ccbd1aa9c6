"""Twenty questions about the facts of the quickstart: the policy finds a country by questions of yes and no.

    python -m cluster.recipes.twenty_questions data/twenty    writes the data of configs/twenty_questions.yaml

Demonstrations ask and guess at random, so that the policy knows the form of the game alone."""

from __future__ import annotations

import argparse
import random
import re
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.spaces import Text

from cluster.quickstart.grammar import GRAMMAR
from common.files import write_jsonl, write_text
from common.random_streams import Stream, derived_seed

RELATIONS = {relation.name: relation.facts for relation in GRAMMAR.relations}
CONTINENTS = {country: RELATIONS["continent"][country] for country in RELATIONS["capital"]}
COUNTRIES = tuple(CONTINENTS)
PLACE = re.compile(r"^Is it in (.+)\?$")
LETTER = re.compile(r"^Is its first letter before (\w)\?$")
GUESS = re.compile(r"^Is it (.+)\?$")
OPENING = "I think of a country."
ODD = 'Ask "Is it in …?", "Is its first letter before …?" or "Is it …?".'
LETTERS = "BCEGIJKP"


class TwentyQuestions(gymnasium.Env[str, str]):
    """The reward is 1 for the right guess. A question costs nothing but one of the turns
    (environment.turns)."""

    observation_space = Text(1000)
    action_space = Text(1000)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self._secret = random.Random(derived_seed(seed or 0, Stream.EPISODE_EVENTS)).choice(COUNTRIES)
        self._turns = 0
        return OPENING, {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self._turns += 1
        found = action.strip() == f"Is it {self._secret}?"
        if found:
            return "Yes.", 1.0, True, False, {"found": True, "questions": self._turns}
        return answer(self._secret, action.strip()), 0.0, False, False, {"found": False}


def answer(secret: str, question: str) -> str:
    """Yes., No., or what may be asked."""
    if place := PLACE.match(question):
        return "Yes." if place[1] == CONTINENTS[secret] else "No."
    if letter := LETTER.match(question):
        return "Yes." if secret[0] < letter[1] else "No."
    if guess := GUESS.match(question):
        return "Yes." if guess[1] == secret else "No."
    return ODD


def random_question(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.35:
        return f"Is it in {rng.choice(sorted(set(CONTINENTS.values())))}?"
    if kind < 0.6:
        return f"Is its first letter before {rng.choice(LETTERS)}?"
    return f"Is it {rng.choice(COUNTRIES)}?"


def demonstration(rng: random.Random, most_questions: int = 5) -> dict[str, Any]:
    """A game with random questions."""
    secret = rng.choice(COUNTRIES)
    messages = [{"role": "user", "content": OPENING}]
    for _ in range(rng.randint(1, most_questions)):
        question = random_question(rng)
        messages.append({"role": "assistant", "content": question})
        messages.append({"role": "user", "content": answer(secret, question)})
    return {"messages": messages[:-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--demonstrations", type=int, default=8000)
    arguments = parser.parse_args()
    folder, rng = arguments.folder, random.Random(derived_seed(arguments.seed, Stream.RECIPE_DATA))
    folder.mkdir(parents=True, exist_ok=True)
    rows = [demonstration(rng) for _ in range(arguments.demonstrations)]
    facts = [f"{country} is in {continent}." for country, continent in CONTINENTS.items()]
    texts = []
    for row in rows:
        rng.shuffle(facts)
        texts.append("\n".join([*facts[:4], *(message["content"] for message in row["messages"])]))
    write_text(folder / "corpus.txt", "\n\n".join(texts) + "\n")
    write_jsonl(folder / "demonstrations.jsonl", rows)
    # The environment opens the game; the seed of the episode decides which country it is.
    write_jsonl(folder / "prompts.jsonl", [{"prompt": f"Game {number}"} for number in range(512)])
    write_jsonl(folder / "heldout.jsonl", [{"prompt": f"Game {512 + number}"} for number in range(128)])


if __name__ == "__main__":
    main()
