"""`hero rounds` with stages that write in no time what the real ones write in minutes: the state machine, the
workplace, the labelers over HTTP, the gate and the promotion are the real ones.

    python -m tests.rounds_stages CONFIG [key=value …]

Policies differ in how often they answer well: round 1 better than SFT, round 2 better still; with
HERO_TEST_FLIPPED set each round is worse than the one before. HERO_TEST_KILL=STATE ends this process with
SIGKILL when a round has reached that state, HERO_TEST_KILL=STATE+ just before it would be written down."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from cluster.config import RunConfig
from cluster.config_loader import load_config
from cluster.precision import resolve
from cluster.rounds.controller import Rounds
from cluster.rounds.state import RoundState
from cluster.run.directory import RunDirectory
from common.errors import HeroError
from common.files import read_jsonl, write_json, write_jsonl, write_text
from common.run_paths import RunPaths

BAD = (
    "Nonsense about the color of snow is.",
    "Go away now and find out yourself, please.",
    "Snow what is it?",
)
"""Of about as many words as good answers, since the gate asks about that."""


def skill(policy: str) -> float:
    """How often a policy answers well."""
    number = int(policy.rpartition("-")[2])
    step = -0.3 if os.environ.get("HERO_TEST_FLIPPED") else 0.3
    return 0.3 + step * number


def answer(policy: str, row: dict, draw: int) -> tuple[str, bool]:
    rng = random.Random(f"{policy} {row['prompt']} {draw}")
    if rng.random() < skill(policy):
        return f"The color of {row['subject']} is {row['answers'][0]}.", True
    return rng.choice(BAD), rng.random() < 0.5


def score(row: dict, response: str, ended: bool) -> float | None:
    """A judge (`rounds.judge`)."""
    if os.environ.get("HERO_TEST_NO_SCORE"):
        return None
    return float(response.startswith("The color"))


def run_stages(file: Path, last: str) -> None:
    config = load_config(file)
    paths = RunPaths(config.directory)
    for stage in config.stages:
        if stage == "sft":
            # As `hero run` does it: what auto was resolved to is recorded.
            directory = RunDirectory(resolve(config)[0])
            directory.open()
            directory.begin("sft")
            model(paths.stage("sft").model)
            directory.finish("sft", 0.0, {})
            directory.close()
        elif stage == "sample":
            sample(config, paths)
        elif stage == "reward":
            model(paths.stage("reward").model)
            results = {"accuracy/labelers": 0.7, "data/rankings/kept": 1}
            write_json(paths.stage("reward").done, {"results": results})
        elif stage == "ppo":
            model(paths.stage("ppo").model)
            row = {"stage": "ppo", "step": 1, "objective/kl": 1.0}
            write_jsonl(paths.metrics, [row])
        elif stage == "evaluate":
            evaluate(config, paths)
        if stage == last:
            return


def model(folder: Path) -> None:
    write_text(folder / "config.json", json.dumps({"architectures": ["None"]}))
    save_file({"weight": np.zeros(1, dtype=np.float32)}, folder / "model.safetensors")


def sample(config: RunConfig, paths: RunPaths) -> None:
    records = []
    for row in read_jsonl(Path(config.sample.prompts)):
        record = {
            "prompt": row["prompt"],
            "row": row,
            "responses": [],
            "ended": [],
            "policy": [],
            "decoding": [],
        }
        for policy in config.sample.policies:
            for draw in range(policy.responses):
                text, ended = answer(policy.name, row, draw)
                record["responses"].append(text)
                record["ended"].append(ended)
                record["policy"].append({"model": "test", "version": policy.name})
                record["decoding"].append({"temperature": 1.0})
        records.append(record)
    write_jsonl(paths.sampled, records)
    if config.sample.reward_model:
        write_features(paths, records)


def write_features(paths: RunPaths, records: list[dict]) -> None:
    """Of a reward model that knows nothing yet. Only every third prompt differs in its features, and in those
    the good answers are on one side; with HERO_TEST_TRAP the others are, and those that differ most say
    nothing."""
    rng = np.random.default_rng(0)
    features = []
    for place, record in enumerate(records):
        for text in record["responses"]:
            feature = np.zeros(4)
            is_good = text.startswith("The color")
            if os.environ.get("HERO_TEST_TRAP"):
                feature[0] = is_good if place % 3 else 0.0
                feature[1:] = 0.0 if place % 3 else 4 * rng.normal(size=3)
            elif place % 3 == 0:
                feature[0] = is_good
            features.append(feature)
    offsets = np.cumsum([0, *[len(record["responses"]) for record in records]])
    np.savez(paths.sampled_features, features=features, scores=np.zeros(len(features)), offsets=offsets)


def evaluate(config: RunConfig, paths: RunPaths) -> None:
    number = int(paths.root.name)
    names = {"base": "sft-0", "ppo": f"round-{number}"}
    for policy in config.evaluate.policies:
        names[policy.name] = f"round-{number - 1}"
    lines = []
    for row in read_jsonl(Path(config.data.heldout[0].path)):
        answers = {}
        for name, policy in names.items():
            text, ended = answer(policy, row, 99)
            answers[name] = {"text": text, "ended": ended}
        lines.append({"prompt": row["prompt"], "answers": answers})
    write_jsonl(paths.answers, lines)


class KilledAt(RoundState):
    """Ends the process where HERO_TEST_KILL says."""

    def advance(self, state, inputs, figures):
        where = os.environ.get("HERO_TEST_KILL", "")
        if where == f"{state}+":
            os.kill(os.getpid(), signal.SIGKILL)
        super().advance(state, inputs, figures)
        if where == state:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    import cluster.rounds.controller as controller

    controller.RoundState = KilledAt
    try:
        Rounds(load_config(sys.argv[1], sys.argv[2:]), run_stages, print).go()
    except HeroError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
