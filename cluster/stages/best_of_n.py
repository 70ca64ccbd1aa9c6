"""Rejection sampling: the SFT policy answers each prompt n times, and is fine-tuned on the response with the
highest reward (Stiennon et al. 2020; Touvron et al. 2023, arXiv:2307.09288, section 3.2.3).

    prompts ─► rollout actors ─► scoring actors ─► chosen.jsonl ─► learners (SFT)

chosen.jsonl has a line for each prompt: a demonstration that ends with the chosen response, its reward and
the rewards of all responses. progress.json, written after it, says how far it is complete, with the running
statistics of the rewards, so that an interrupted stage goes on with the next prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cluster.context import Context
from cluster.rl.reward_aggregator import Rows, rewards_of
from cluster.rl.weight_sync import load_weights
from cluster.run.progress import progress
from cluster.stages.supervised import SupervisedStage
from common.errors import UserError
from common.files import read_json, read_jsonl, to_json, truncate_partial_line, write_json, write_jsonl
from common.random_streams import Stream, generator, response_seeds
from common.run_paths import TrainingInputPaths
from learners.data.config import SourceConfig
from learners.data.conversations import as_messages
from learners.data.encoding import encode_demonstrations
from learners.data.samples import Samples
from learners.data.sources import DatasetReader
from learners.data.tokenizer import end_token
from learners.data.tokenizer_loading import load_tokenizer
from learners.data.turn_tokens import response_texts
from learners.rl.estimates import best_of_n_kl

CHUNK = 256  # prompts between two writes: what an interruption can cost

Row = dict[str, Any]


def run(context: Context) -> dict[str, Any]:
    config, paths = context.config, context.run.paths
    folder = context.run.stage("best_of_n")
    policy = context.run.model("sft")
    sample_and_choose(context, policy)
    reader = DatasetReader("demonstrations", config.data, config.seed)
    context.readers["demonstrations"] = reader
    data = encode_demonstrations(
        reader.read([SourceConfig(path=str(paths.chosen))]),
        load_tokenizer(policy, config.model),
        config.model.context,
        reader,
        config.best_of_n.validation_share,
    )
    data.save(TrainingInputPaths(folder).demonstration_tokens)
    learners = context.fleets.learners()
    total_steps = learners.start_sft(policy, config.best_of_n, folder, config.seed)
    stage = SupervisedStage(
        context,
        "best_of_n",
        learners,
        total_steps=total_steps,
        checkpoint_every=config.best_of_n.checkpoint_every,
        inputs=[policy, *context.run.data("prompts")],
        final_metrics=partial(_choice_metrics, context),
    )
    results = stage.run()
    context.run.publish("best_of_n", total_steps, paths.stage("best_of_n").model)
    return results


def sample_and_choose(context: Context, policy: Path) -> None:
    """Writes the best response to each prompt, `CHUNK` prompts at a time; continues after what an
    interrupted run has written. Raises UserError if no prompt has one, and RunStoppedError for too many
    responses without a reward."""
    config, paths = context.config.best_of_n, context.run.paths
    tokenizer = load_tokenizer(policy, context.config.model)
    rows, tokens = context.prompts("prompts", tokenizer, config.max_response_tokens)
    # The order is drawn from the seed alone, so a count says how far the prompts are done.
    order = generator(context.config.seed, Stream.BEST_OF_N_PROMPTS).permutation(len(rows))[: config.prompts]
    state = read_json(paths.best_of_n_progress) or {"prompts": 0, "lines": 0, "quarantined": 0}
    quarantine = paths.stage("best_of_n").quarantine
    _keep_lines(paths.chosen, state["lines"])
    _keep_lines(quarantine, state["quarantined"])
    if state["prompts"] < len(order):
        rollouts = context.fleets.rollouts(policy)
        load_weights(context, policy)
        scorers = context.fleets.scorers(policy, context.run.reward_model())
        rewards = rewards_of(context.config, scorers, quarantine, state.get("rewards"))
    decoding, end = context.decoding("best_of_n", config.temperature), end_token(tokenizer)
    with progress("best_of_n", total=len(order), done=state["prompts"]) as bar:
        while state["prompts"] < len(order):
            prompt_ids = order[state["prompts"] :][:CHUNK].tolist()
            prompts = [tokens[i] for i in prompt_ids]
            seeds = response_seeds(
                context.config.seed, Stream.BEST_OF_N_SEEDS, (), prompt_ids, config.responses
            )
            refs = rollouts.generate(prompts, prompt_ids, decoding, end, config.responses, seeds)
            asked = {i: rows[i] for i in prompt_ids}
            parts, _ = rewards.score(refs, asked, config.temperature, step=0)
            samples = Samples.concat(scorers.wait([part.samples for part in parts], "select"))
            scores_B = np.concatenate([part.scores_B for part in parts])
            texts = response_texts(tokenizer, [samples.response(b) for b in range(samples.size)])
            chosen = choose(samples, scores_B, texts, asked, context.config.data.split_key)
            with open(paths.chosen, "a", encoding="utf-8") as file:
                file.writelines(to_json(row) + "\n" for row in chosen)
            state["prompts"] += len(prompt_ids)
            state["lines"] += len(chosen)
            state["rewards"], state["quarantined"] = rewards.state, len(read_jsonl(quarantine))
            write_json(paths.best_of_n_progress, state)
            bar.advance(len(prompt_ids), f"best of {config.responses}: reward {_mean_reward(chosen):+.2f}")
    if not state["lines"]:
        raise UserError(
            f"best_of_n: none of {len(order)} prompts has a response that ends by itself within "
            f"best_of_n.max_response_tokens={config.max_response_tokens}; raise it"
        )


def choose(
    samples: Samples, scores_B: np.ndarray, texts: Sequence[str], rows: Rows, split_key: str | None
) -> list[Row]:
    """A demonstration for each prompt, in the order of `rows`, that has a response to learn from: the one
    with the highest reward among those that ended by themselves and are not empty. The end of a response
    that was cut would be learned in the wrong place."""
    by_prompt: dict[int, list[int]] = {prompt_id: [] for prompt_id in rows}
    for b, prompt_id in enumerate(samples.prompt_ids_B.tolist()):
        by_prompt[prompt_id].append(b)
    chosen = []
    for prompt_id, members in by_prompt.items():
        complete = [b for b in members if samples.ended_B[b] and texts[b].strip()]
        if not complete:
            continue
        best = max(complete, key=lambda b: scores_B[b])
        row = rows[prompt_id]
        answer = {"role": "assistant", "content": texts[best]}
        line = {
            "messages": [*as_messages(row["prompt"]), answer],
            "reward": float(scores_B[best]),
            "rewards": scores_B[members].tolist(),
        }
        # Held out by the value of this key, as demonstrations of the user's are.
        if split_key and split_key in row:
            line[split_key] = row[split_key]
        chosen.append(line)
    return chosen


def _keep_lines(path: Path, count: int) -> None:
    """Removes what was written after the last complete chunk."""
    truncate_partial_line(path)
    if path.exists():
        write_jsonl(path, read_jsonl(path)[:count])


def _mean_reward(chosen: Sequence[Row]) -> float:
    if not chosen:
        return float("nan")
    return float(np.mean([row["reward"] for row in chosen]))


def _choice_metrics(context: Context) -> dict[str, float]:
    """Mean reward of the chosen responses and of all, and how far the best of n is from the policy."""
    paths, chosen = context.run.paths, read_jsonl(context.run.paths.chosen)
    means = [float(np.mean(row["rewards"])) for row in chosen]
    return {
        "prompts": float(read_json(paths.best_of_n_progress)["prompts"]),
        "chosen": float(len(chosen)),
        "reward/chosen": _mean_reward(chosen),
        "reward/all": float(np.mean(means)),
        "kl/best_of_n": best_of_n_kl(context.config.best_of_n.responses),
    }
