"""Steps of TRL's GRPOTrainer, for `bench.peers`, which runs this file in an environment that has TRL.

    python -m bench.peers_trl SETTING STEPS OUT.json

SETTING is a `bench.peers.Setting` as JSON. Writes the seconds, the mean reward and the mean length of every
step.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from cluster.quickstart.oracle import judge
from learners.data.conversations import as_messages


def reward(completions: list[Any], row: list[str], **columns: Any) -> list[float]:
    """The score that `bench.peers.reward` gives the same text."""
    scores = []
    for completion, encoded in zip(completions, row, strict=True):
        scores.append(judge(json.loads(encoded), completion[0]["content"]).score)
    return scores


class Clock(TrainerCallback):
    """When each step ended, and what the trainer logged of it."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.rows: list[dict[str, float]] = []

    def on_train_begin(self, *args: Any, **options: Any) -> None:
        self.ends.append(time.perf_counter())

    def on_step_end(self, *args: Any, **options: Any) -> None:
        self.ends.append(time.perf_counter())

    def on_log(self, *args: Any, logs: dict[str, float], **options: Any) -> None:
        if "reward" in logs:
            self.rows.append({"reward": logs["reward"], "length": logs["completions/mean_length"]})


def main() -> None:
    setting, steps, out = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(2)
    with open(setting["prompts"], encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    data = []
    for row in rows[: steps * setting["per_step"]]:
        data.append({"prompt": as_messages(row["prompt"]), "row": json.dumps(row)})
    settings = GRPOConfig(
        output_dir=out + ".trainer",
        per_device_train_batch_size=setting["per_step"] * setting["responses"],
        num_generations=setting["responses"],
        max_completion_length=setting["max_tokens"],
        temperature=1.0,
        beta=0.0,
        learning_rate=setting["lr"],
        lr_scheduler_type="constant",
        max_steps=steps,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        shuffle_dataset=False,
        disable_dropout=True,
        model_init_kwargs={"dtype": "float32"},
    )
    clock = Clock()
    source = setting["reward_model"] or reward
    dataset = Dataset.from_list(data)
    trainer = GRPOTrainer(setting["model"], source, args=settings, train_dataset=dataset, callbacks=[clock])
    trainer.train()
    seconds = []
    for begin, end in zip(clock.ends, clock.ends[1:], strict=False):
        seconds.append(end - begin)
    with open(out, "w", encoding="utf-8") as file:
        json.dump({"seconds": seconds, "rows": clock.rows}, file)


if __name__ == "__main__":
    main()
