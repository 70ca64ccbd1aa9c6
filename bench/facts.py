"""What RL does to facts: trivia questions with short answers, answered by several models.

    python -m bench.facts QUESTIONS.jsonl NAME=FOLDER [NAME=FOLDER ...] [--count 400]

Rows are {"question", "answer", "options"} (OpenTriviaQA). Exact match of the greedy answer after
normalisation, and whether the answer is a part of it (cluster/recipes/trivia.py). Whether the model gives the
answer a higher probability than each other option, which tells models apart that can write few answers
themselves. The questions are those with the lowest hashes, so that none is chosen, which the recipe's corpus
leaves out. 95% intervals over questions; the difference to the first model is paired by question.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bench.answers import answers, named_folders, nats_of
from bench.common import mean_interval, print_header, print_row, start_parser
from cluster.recipes.trivia import digest, is_held_out, judge, question
from common.files import read_jsonl

TOKENS = 16
MEASURES = ("exact", "contains", "choice")


def main() -> None:
    parser = start_parser(__doc__)
    parser.add_argument("questions", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--count", type=int, default=400)
    arguments = parser.parse_args()
    folders = named_folders(arguments.models)
    rows = sorted(filter(is_held_out, read_jsonl(arguments.questions)), key=digest)
    rows = [prompt for row in rows[: arguments.count] for prompt in question(row)]
    first: dict[str, np.ndarray] = {}
    print_header(["model", *MEASURES, *(f"{name}, difference" for name in MEASURES)])
    for model, folder in folders.items():
        measured = measures(folder, rows)
        first = first or measured
        cells = [mean_interval(measured[name].tolist(), ".1%") for name in MEASURES]
        paired = {name: (measured[name] - first[name]).tolist() for name in MEASURES}
        differences = [mean_interval(paired[name], ".1%") for name in MEASURES]
        print_row([model, *cells, *(differences if measured is not first else [""] * len(MEASURES))])


def measures(folder: Path, rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """By name, one value for each question."""
    prompts = [row["prompt"] for row in rows]
    texts = answers(folder, prompts, TOKENS)
    verdicts = [judge(row, text, True) for row, text in zip(rows, texts, strict=True)]
    nats = nats_of(folder, prompts, [row["options"] for row in rows])
    for verdict, row, of_row in zip(verdicts, rows, nats, strict=True):
        verdict["choice"] = float(row["options"][int(np.argmin(of_row))] == row["answer"])
    return {name: np.array([verdict[name] for verdict in verdicts]) for name in MEASURES}


if __name__ == "__main__":
    main()
