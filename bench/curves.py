"""Curves of PPO's metrics over its iterations, of one or several runs, as an SVG file.

    python -m bench.curves OUT.svg RUN [RUN …] --metrics METRIC [METRIC …]

One panel for each metric, by its name in metrics.jsonl, and in it a line for each run, named after its
folder.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt

from bench.common import start_parser
from bench.figures import save
from common.errors import UserError
from common.files import read_jsonl
from common.run_paths import RunPaths


def main() -> None:
    parser = start_parser(__doc__)
    parser.add_argument("figure", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--metrics", nargs="+", required=True)
    arguments = parser.parse_args()
    count = len(arguments.metrics)
    figure, axes = plt.subplots(1, count, figsize=(3.2 * count, 3), layout="constrained", squeeze=False)
    for root in arguments.runs:
        paths = RunPaths(root.absolute())
        rows = [row for row in read_jsonl(paths.metrics) if row["stage"] == "ppo"]
        for axis, metric in zip(axes[0], arguments.metrics, strict=True):
            points = {row["step"]: row[metric] for row in rows if metric in row}
            if not points:
                known = sorted({name for row in rows for name in row})
                raise UserError(f"{paths.metrics}: no metric {metric} of PPO; there are {', '.join(known)}")
            axis.plot(points.keys(), points.values(), label=root.name)
            axis.set(title=metric, xlabel="iteration")
            axis.grid(alpha=0.3)
    if len(arguments.runs) > 1:
        axes[0][0].legend(fontsize=8)
    save(figure, arguments.figure)


if __name__ == "__main__":
    main()
