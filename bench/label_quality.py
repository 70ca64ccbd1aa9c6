"""What held-back labels are worth: reward models from the labels of eight people of whom three are careless,
and from the labels that are left when the check of quality has paused those three.

    python -m bench.label_quality runs/quickstart OUT [--prompts 700] [--seeds 0 1 2]

Needs a run of the quickstart whose collect stage is done. For each seed five honest people at an error rate
of 0.22, one who clicks at random, one who keeps the order shown and one who prefers the longest response
label the collected responses over HTTP, each item twice. Three reward models start from the run's SFT model:
from the labels that are left (held back), from as many labels of all eight (as many), and from all labels of
all eight (all). Printed is how often each orders pairs as the oracle does: the same pairs for all three, of
collected responses to prompts that nobody has labelled. What is done is not done again.
"""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging as transformers_logging

from actors.scoring import ScoringActor
from bench.common import print_header, print_row, start_parser
from cluster.config_loader import load_config
from cluster.quickstart.oracle import BEST_UTILITY, judge, utility
from common.files import read_json, read_jsonl, write_json, write_jsonl
from common.run_paths import RunPaths
from label.config import LabelConfig
from label.export import write_export
from label.monitoring import look
from label.server import serving
from label.simulate import make_people, work_together
from label.simulated_team import join_all
from label.store.items import BatchSpec, add_items
from label.store.people import list_people, set_state
from label.submission import dense_ranks
from label.workplace import Workplace

HONEST, CARELESS = 5, ("random", "first", "longest")
GOLD_ITEMS = 200
MEASURED = 500
"""Prompts that nobody has labelled, on whose responses reward models are measured."""
ARMS = ("equal", "held", "mixed")


def worths(rows: list[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """What the oracle thinks of each response to each prompt, from 0 to 1."""
    found = {}
    for row in rows:
        for text, ended in zip(row["responses"], row["ended"], strict=True):
            found[str(row["prompt"]), text] = utility(judge(row["row"], text, ended)) / BEST_UTILITY
    return found


def with_gold(row: dict[str, Any], worth: dict[tuple[str, str], float]) -> dict[str, Any]:
    values = [worth[str(row["prompt"]), text] for text in row["responses"]]
    order = {str(i): round(1000 * (1 - value)) for i, value in enumerate(values)}
    return {**row, "gold": {"ranks": list(dense_ranks(order).values()), "explanation": "by the oracle"}}


def label(root: Path, rows: list[dict[str, Any]], prompts: int, seed: int) -> dict[str, Any]:
    """Has people label `prompts` of the rows; returns the description of each export, and who was paused."""
    rows, worth = list(rows), worths(rows)
    random.Random(seed).shuffle(rows)
    workplace = Workplace(root, LabelConfig(calibration_share=0, repeat_share=0, gold_share=0.1))
    add_items(workplace.database, BatchSpec("train", "rank", quota=2), rows[:prompts])
    gold = [with_gold(row, worth) for row in rows[prompts : prompts + GOLD_ITEMS]]
    add_items(workplace.database, BatchSpec("gold", "rank", purpose="gold"), gold)
    settings = {"quality": lambda prompt, text: worth[str(prompt), text]}
    # The check of quality comes after the work, so that the careless ones give their share of the labels.
    workplace.settings = workplace.settings.model_copy(
        update={"pause": workplace.settings.pause.model_copy(update={"enabled": False})}
    )
    with serving(workplace) as url:
        team = make_people(url, HONEST, seed, **settings)
        for number, behaviour in enumerate(CARELESS, 1):
            team += make_people(url, 1, 1000 * number + seed, behaviour=behaviour, **settings)
        for person in join_all(workplace, team):
            with workplace.database.write() as connection:
                set_state(connection, person, "admitted", "bench", "")
        work_together(team)
    exports = {"mixed": write_export(workplace.database, root, "mixed")}
    with workplace.database.read() as connection:
        people = list_people(connection)
    for person in people:
        look(workplace.database, LabelConfig(), person["id"])
    exports["held"] = write_export(workplace.database, root, "held")
    with workplace.database.read() as connection:
        paused = [row["name"] for row in list_people(connection) if row["state"] == "paused"]
    workplace.database.close()
    careless = {one.name for one in team if one.behaviour != "honest"}
    return {**exports, "paused": len(careless & set(paused)), "wrongly": len(set(paused) - careless)}


def train(source: Path, root: Path, rankings: Path, seed: int) -> None:
    own = [f"seed={seed}", f"run_dir={root}", f"name={root.name}", "stages=[reward]"]
    own += [f"model.path={source / 'sft' / 'model'}", f"data.rankings=[{rankings}]"]
    own += [f"model.{key}=" for key in ("layers", "width", "heads", "kv_heads", "vocab_size")]
    command = [sys.executable, "-m", "cluster.cli", "run", "configs/quickstart.yaml", *own]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def accuracy(source: Path, root: Path, rows: list[dict[str, Any]]) -> tuple[float, int]:
    """How often the reward model in `root` orders responses to the same prompt as the oracle does, and of how
    many pairs that the oracle does not hold equal."""
    config = load_config(RunPaths(root).config)
    models = [
        str(path) for path in (RunPaths(source).stage("sft").model, RunPaths(root).stage("reward").model)
    ]
    actor = ScoringActor(*models, config.scoring, config.rewards, config.model, uses_reference=False)
    worth, asked = worths(rows), []
    for row in rows:
        for text, ended in zip(row["responses"], row["ended"], strict=True):
            asked.append({"prompt": row["prompt"], "response": text, "ended": ended})
    scores, right, start = actor.features(asked).scores_B, [], 0
    for row in rows:
        true_K = np.array([worth[str(row["prompt"]), text] for text in row["responses"]])
        score_K = scores[start : start + len(true_K)]
        start += len(true_K)
        better, worse = np.nonzero(true_K[:, None] > true_K[None, :])
        right += (score_K[better] > score_K[worse]).tolist()
    return float(np.mean(right)), len(right)


def unseen(rows: list[dict[str, Any]], root: Path) -> list[dict[str, Any]]:
    """`MEASURED` rows whose prompt nobody has labelled."""
    labelled = {str(row["prompt"]) for row in read_jsonl(root / "mixed.jsonl")}
    return [row for row in rows if str(row["prompt"]) not in labelled][:MEASURED]


def main() -> None:
    parser = start_parser(__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompts", type=int, default=700)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    source = arguments.run.absolute()
    rows = read_jsonl(RunPaths(source).responses)
    roots = {seed: arguments.out.absolute() / f"seed-{seed}" for seed in arguments.seeds}
    for seed, root in roots.items():
        if not (root / "exports.json").exists():
            write_json(root / "exports.json", label(root, rows, arguments.prompts, seed))
        draw_as_many(root, seed)
    for name in ARMS:
        for seed, root in roots.items():
            if not RunPaths(root / name).stage("reward").done.exists():
                train(source, root / name, root / f"{name}.jsonl", seed)
    transformers_logging.disable_progress_bar()  # of models that load between the rows
    print_header(["seed", "paused", "labels", "left", "held back", "as many", "all", "pairs"])
    for seed, root in roots.items():
        exports = read_json(root / "exports.json")
        labels = [exports[name]["files"][f"{name}.jsonl"]["rows"] for name in ("mixed", "held")]
        paused = f"{exports['paused']} of 3, {exports['wrongly']} of {HONEST} honest"
        found = {name: accuracy(source, root / name, unseen(rows, root)) for name in ARMS}
        shares = [f"{found[name][0]:.1%}" for name in ("held", "equal", "mixed")]
        print_row([seed, paused, *labels, *shares, found["held"][1]])


def draw_as_many(root: Path, seed: int) -> None:
    """Writes as many of all labels as are left when some are held back."""
    rows, left = read_jsonl(root / "mixed.jsonl"), read_jsonl(root / "held.jsonl")
    chosen = sorted(random.Random(seed).sample(range(len(rows)), len(left)))
    write_jsonl(root / "equal.jsonl", [rows[i] for i in chosen])


if __name__ == "__main__":
    main()
