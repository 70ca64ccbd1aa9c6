"""How fast chains of sums are learned: a table and a figure of finished runs of configs/sums.yaml.

    python -m cluster.recipes.sums data/sums
    for s in 0 1 2; do hero run configs/sums.yaml run_dir=runs/sums-$s seed=$s; done
    python -m bench.sums OUT.svg runs/sums-0 runs/sums-1 runs/sums-2

Shares of right answers: of the held-out questions before PPO (`sft`), by 128 of them during PPO, and by all
at its end, greedy and sampled at temperature 1; and of the training episodes of an iteration.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt

from bench.common import print_header, print_row, start_parser
from bench.figures import save
from common.files import read_json, read_jsonl
from common.run_paths import RunPaths


def main() -> None:
    parser = start_parser(__doc__)
    parser.add_argument("figure", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    arguments = parser.parse_args()
    figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
    tables = []
    for number, root in enumerate(arguments.runs):
        paths = RunPaths(root.absolute())
        rows = [row for row in read_jsonl(paths.metrics) if row["stage"] == "ppo"]
        evaluated = {row["step"]: row["eval/right"] for row in rows if "eval/right" in row}
        stages = read_json(paths.stage("evaluate").done)["results"]["stages"]
        tables.append((root.name, stages, evaluated))
        colour = f"C{number}"
        steps = [row["step"] for row in rows]
        axis.plot(steps, [row["episode/return"] for row in rows], color=colour, alpha=0.35)
        axis.plot(list(evaluated), list(evaluated.values()), "o-", color=colour, label=root.name)
    steps = list(tables[0][2])
    names = [f"iteration {step}" for step in steps]
    print_header(["run", "sft, greedy", "sft, sampled", *names, "end, greedy", "end, sampled"])
    for name, stages, evaluated in tables:
        before, after = (
            [f"{stages[stage][decoding]['right']:.1%}" for decoding in ("greedy", "sampled")]
            for stage in ("sft", "ppo")
        )
        print_row([name, *before, *[f"{evaluated[step]:.1%}" for step in steps], *after])
    axis.set_xlabel("iteration of 24 questions with 16 episodes each")
    axis.set_ylabel("right answers")
    axis.set_ylim(0, 1)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    save(figure, arguments.figure)


if __name__ == "__main__":
    main()
