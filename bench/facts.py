"""What RL does to facts: trivia questions with short answers, answered by several models.

    python -m bench.facts QUESTIONS.jsonl NAME=FOLDER [NAME=FOLDER ...] [--count 400]

Rows are {"question", "answer", "options"} (OpenTriviaQA). Exact match of the greedy answer after
normalisation, and whether the answer is a part of it (cluster/recipes/trivia.py). Whether the model gives the
answer a higher probability than each other option, which tells models apart that can write few answers
themselves. Minus the log-probability of question and answer as one text, the form of the corpus that PTX
learns from, in nats. The questions are those with the lowest hashes, so that none is
chosen, which that corpus leaves out. 95% intervals over questions; the difference to the first model is
paired by question.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bench.answers import answers, named_folders, nats_of
from bench.common import mean_interval, print_header, print_row, start_parser
from cluster.recipes.trivia import digest, is_held_out, judge, question, text_of
from common.files import read_jsonl

TOKENS = 16
MEASURES = {"exact": ".1%", "contains": ".1%", "choice": ".1%", "text, nats": ".2f"}


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
        cells = [mean_interval(measured[name].tolist(), form) for name, form in MEASURES.items()]
        paired = {name: (measured[name] - first[name]).tolist() for name in MEASURES}
        differences = [mean_interval(paired[name], form) for name, form in MEASURES.items()]
        print_row([model, *cells, *(differences if measured is not first else [""] * len(MEASURES))])


def measures(folder: Path, rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """By name, one value for each question."""
    prompts = [row["prompt"] for row in rows]
    texts = answers(folder, prompts, TOKENS)
    verdicts = [judge(row, text, True) for row, text in zip(rows, texts, strict=True)]
    asked = [(row["prompt"], option) for row in rows for option in row["options"]]
    nats_of_asked = nats_of(folder, [prompt for prompt, _ in asked], [option for _, option in asked])
    nats = dict(zip(asked, nats_of_asked, strict=True))
    choices = [min(row["options"], key=lambda option: nats[row["prompt"], option]) for row in rows]
    return {
        **{name: np.array([verdict[name] for verdict in verdicts]) for name in ("exact", "contains")},
        "choice": np.array([float(c == row["answer"]) for c, row in zip(choices, rows, strict=True)]),
        "text, nats": np.array(nats_of(folder, [""] * len(rows), [text_of(row) for row in rows])),
    }


if __name__ == "__main__":
    main()
