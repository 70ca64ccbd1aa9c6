"""Chains of sums with a calculator and a price list: a task that a small model cannot do in its head.

    python -m cluster.recipes.sums data/sums        writes the four files of configs/sums.yaml

A demonstration shows how tools are called, at random: two numbers of the conversation are added, mostly
such as were not added before, prices are asked for, and any number is the answer, after any number of calls.
Which calls answer a question is left to reinforcement learning: 7% of the demonstrations with three terms
are right by accident.
"""

from __future__ import annotations

import argparse
import json
import random
from functools import cache
from pathlib import Path
from typing import Any

from actors.environments.tools import tool_schema
from common.files import write_jsonl, write_text
from common.random_streams import Stream, derived_seed

PRICES = {
    name: 10 + 7 * number % 40
    for number, name in enumerate(
        ("tin", "oak", "rope", "salt", "wool", "clay", "iron", "silk", "coal", "wax", "flax", "bone")
    )
}
SMALLEST, LARGEST = 10, 49
NAMED_SHARE = 0.1
"""Of the terms that are goods, whose price the policy must ask for."""
STOPS = 0.3
"""How often a demonstration answers instead of calling one more tool."""
MOST_CALLS = 4
REUSE = 0.2
"""How likely a number is to be added that has been added before, beside one that has not."""


def add(a: int, b: int) -> int:
    """The sum of two numbers.

    Args:
        a: A number.
        b: Another number.
    """
    return a + b


def price(item: str) -> int:
    """The price of an item.

    Args:
        item: Its name.
    """
    if item not in PRICES:
        raise ValueError(f"no item is named {item}")
    return PRICES[item]


TOOLS = (add, price)


def grade(row: dict[str, Any], response: str, ended: bool) -> float:
    """1 if the answer is the sum, else 0."""
    return float(response.strip() == row["answer"])


def judge(row: dict[str, Any], response: str, ended: bool) -> dict[str, float | None]:
    """Whether the answer is right."""
    right = grade(row, response, ended)
    return {"score": right, "right": right}


@cache
def offered_tools() -> str:
    """What configs/tools.jinja writes to offer the tools."""
    lines = ["Tools:"]
    for tool in (tool_schema(function)["function"] for function in TOOLS):
        lines.append(f"{tool['name']}({', '.join(tool['parameters']['properties'])}): {tool['description']}")
    lines.append('<tool_call>{"name": …, "arguments": {…}}</tool_call>')
    return "\n".join(lines)


def call_text(name: str, arguments: dict[str, Any]) -> str:
    """A call as the policy writes it: the form of the parser `hermes`."""
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def question(rng: random.Random, terms: int) -> dict[str, Any]:
    """A row: `terms` numbers or goods to add."""
    words, total = [], 0
    for _ in range(terms):
        if rng.random() < NAMED_SHARE:
            word = rng.choice(list(PRICES))
            total += PRICES[word]
        else:
            value = rng.randint(SMALLEST, LARGEST)
            word, total = str(value), total + value
        words.append(word)
    return {"prompt": f"What is {' + '.join(words)}?", "answer": str(total)}


def two_of(rng: random.Random, weights: list[float]) -> tuple[int, int]:
    """Two different places, each as likely as its weight."""
    first = rng.choices(range(len(weights)), weights)[0]
    others = [0.0 if place == first else weight for place, weight in enumerate(weights)]
    return first, rng.choices(range(len(weights)), others)[0]


def demonstration(rng: random.Random) -> dict[str, Any]:
    """A conversation with calls of tools at random."""
    row = question(rng, rng.choice((2, 3)))
    words = row["prompt"].removeprefix("What is ").removesuffix("?").split(" + ")
    numbers = [int(word) for word in words if word.isdigit()]
    goods = [word for word in words if word in PRICES]
    weights = [1.0] * len(numbers)
    messages = [{"role": "system", "content": offered_tools()}, {"role": "user", "content": row["prompt"]}]
    for _ in range(MOST_CALLS):
        if rng.random() < STOPS and numbers:
            break
        if len(numbers) < 2 or (goods and rng.random() < 0.4):
            item = goods.pop(rng.randrange(len(goods))) if goods else rng.choice(list(PRICES))
            text, result = call_text("price", {"item": item}), PRICES[item]
        else:
            i, j = two_of(rng, weights)
            weights[i] = weights[j] = REUSE
            text, result = call_text("add", {"a": numbers[i], "b": numbers[j]}), numbers[i] + numbers[j]
        messages.append({"role": "assistant", "content": text})
        messages.append({"role": "tool", "content": str(result)})
        numbers.append(result)
        weights.append(1.0)
    answer = numbers[-1] if rng.random() < 0.6 else rng.choice(numbers)
    messages.append({"role": "assistant", "content": str(answer)})
    return {"messages": messages}


def copied_list(rng: random.Random) -> str:
    """Words twice, in the order of the first time: a model learns to copy from many of these, and a call is
    mostly copying."""
    values = [str(rng.randint(SMALLEST, 3 * LARGEST)) for _ in range(rng.randint(3, 8))]
    values += rng.sample(list(PRICES), rng.randint(0, 2))
    rng.shuffle(values)
    return f"{' '.join(values)}\n{' '.join(values)}"


def write_data(folder: Path, seed: int, demonstrations: int, prompts: int, heldout: int) -> None:
    """corpus.txt, demonstrations.jsonl, prompts.jsonl and heldout.jsonl. No question is in two of the
    last two."""
    rng = random.Random(derived_seed(seed, Stream.RECIPE_DATA))
    rows = [demonstration(rng) for _ in range(demonstrations)]
    texts = []
    for row in (demonstration(rng) for _ in range(demonstrations // 2)):
        texts.append("\n".join(message["content"] for message in row["messages"][1:]))
        texts.append(copied_list(rng))
    asked: dict[str, dict[str, Any]] = {}
    while len(asked) < prompts + heldout:
        # Sums of two terms among them would teach to stop after one call.
        row = question(rng, 3)
        asked.setdefault(row["prompt"], row)
    questions = list(asked.values())
    write_text(folder / "corpus.txt", "\n\n".join(texts) + f"\n\n{offered_tools()}\n")
    write_jsonl(folder / "demonstrations.jsonl", rows)
    write_jsonl(folder / "prompts.jsonl", questions[:prompts])
    write_jsonl(folder / "heldout.jsonl", questions[prompts:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--demonstrations", type=int, default=12000)
    parser.add_argument("--prompts", type=int, default=6000)
    parser.add_argument("--heldout", type=int, default=256)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    write_data(
        arguments.folder, arguments.seed, arguments.demonstrations, arguments.prompts, arguments.heldout
    )


if __name__ == "__main__":
    main()
