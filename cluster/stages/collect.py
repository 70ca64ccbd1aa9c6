"""Stage 3: the SFT policy answers each prompt K times and labelers rank the answers.

responses.jsonl keeps every response with its decoding settings and policy version; rankings.jsonl is what the
reward stage reads, from simulated labelers here and from people elsewhere, in one format.
"""

from __future__ import annotations

import json
import random
import time
from typing import Any

import numpy as np

from cluster.context import Context
from cluster.quickstart.labelers import Labeler, make_labelers
from cluster.rl.weight_sync import load_weights
from cluster.run.progress import progress
from common.files import truncate_partial_line
from learners.data.tokenizer import end_token
from learners.models import load_tokenizer
from learners.supervised.losses import ranking_pairs

CHUNK = 128  # prompts between two writes: what an interruption can cost


def run(context: Context) -> dict[str, Any]:
    config, folder = context.config.collect, context.run.stage("collect")
    policy = context.run.model("sft")
    tokenizer = load_tokenizer(policy)
    rows, tokens = context.prompts("prompts", tokenizer, config.max_response_tokens)
    order = np.random.default_rng(context.config.seed).permutation(len(rows))[: config.prompts]
    decoding = context.decoding("collect", temperature=1.0)
    written = folder / "responses.jsonl"
    truncate_partial_line(written)
    done = len(written.read_text(encoding="utf-8").splitlines()) if written.exists() else 0
    rollouts = context.fleets.rollouts(policy)
    version = load_weights(context, policy)
    with (
        open(written, "a", encoding="utf-8") as file,
        progress("collect", total=len(order), done=done) as bar,
    ):
        while done < len(order):
            chosen = order[done : done + CHUNK]
            seeds = [
                context.config.seed * 10**6 + int(i) * 10 + k for i in chosen for k in range(config.responses)
            ]
            refs = rollouts.generate(
                [tokens[i] for i in chosen],
                chosen.tolist(),
                decoding,
                end_token(tokenizer),
                config.responses,
                seeds,
            )
            lines = []
            for samples in rollouts.wait(refs, "generate"):
                texts = tokenizer.batch_decode(
                    [samples.response(b) for b in range(samples.size)], skip_special_tokens=True
                )
                for start in range(0, samples.size, config.responses):
                    row = rows[samples.prompt_ids_B[start]]
                    lines.append(
                        {
                            "prompt": row["prompt"],
                            "row": row,
                            "responses": texts[start : start + config.responses],
                            "ended": samples.ended_B[start : start + config.responses].tolist(),
                            "policy": {"stage": "sft", "version": version},
                            "decoding": decoding.model_dump(),
                        }
                    )
            file.write("".join(json.dumps(line) + "\n" for line in lines))
            file.flush()
            done += len(chosen)
            bar.advance(len(chosen), f"{config.responses} responses each")
    return label(context, [json.loads(line) for line in written.read_text(encoding="utf-8").splitlines()])


def label(context: Context, collected: list[dict[str, Any]]) -> dict[str, Any]:
    """Has the simulated labelers rank what was collected; returns counts and their pairwise agreement."""
    config, seed = context.config.collect, context.config.seed
    labelers = make_labelers(config.labelers, seed, config.error_rate)
    rng = np.random.default_rng([seed, 1])
    draw = random.Random(seed)
    lines, agreed, compared = [], 0, 0
    for entry in collected:
        judges: list[Labeler] = [
            labelers[i] for i in rng.permutation(len(labelers))[: 1 + (rng.random() < config.overlap)]
        ]
        rankings = [judge.rank(entry["row"], entry["responses"], entry["ended"], draw) for judge in judges]
        lines += [
            {**entry, "ranks": ranks, "labeler": judge.name, "time": time.time()}
            for judge, ranks in zip(judges, rankings, strict=True)
        ]
        if len(rankings) == 2:
            first, second = (set(ranking_pairs(r)) for r in rankings)
            agreed += len(first & second)
            compared += len(first & second) + len(first & {(b, a) for a, b in second})
    path = context.run.stage("collect") / "rankings.jsonl"
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    partial.replace(path)
    return {
        "prompts": len(collected),
        "rankings": len(lines),
        "labelers": config.labelers,
        "agreement/labelers": agreed / max(1, compared),
        "agreement/pairs": compared,
    }
