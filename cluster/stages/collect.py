"""Stage 3: the SFT policy answers each prompt K times and labelers rank the responses.

responses.jsonl keeps every response with its decoding settings and policy version, as
`ResponsesRecord`s. rankings.jsonl is what the reward stage reads, as `RankingRecord`s: from
simulated labelers here, from people elsewhere."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from actors.config import Decoding
from cluster.context import Context
from cluster.fleets.rollout_fleet import RolloutFleet
from cluster.quickstart.labelers import make_labelers
from cluster.rl.weight_sync import load_weights
from cluster.run.progress import progress
from common.files import read_jsonl, to_json, truncate_partial_line, write_jsonl
from common.random_streams import Stream, derived_seed, generator, response_seeds
from learners.data.records import RankingRecord, ResponsesRecord
from learners.data.samples import Samples
from learners.data.tokenizer import end_token
from learners.data.tokenizer_loading import load_tokenizer
from learners.data.turn_tokens import response_texts
from learners.supervised.losses import ranking_pairs

CHUNK = 512  # prompts between two writes: what an interruption can cost


def run(context: Context) -> dict[str, Any]:
    context.run.stage("collect")
    collect(context)
    records = [ResponsesRecord.parse(row) for row in read_jsonl(context.run.paths.responses)]
    return label(context, records)


def collect(context: Context) -> None:
    """Writes the responses."""
    config, seed, path = context.config.collect, context.config.seed, context.run.paths.responses
    policy = context.run.model("sft")
    tokenizer = load_tokenizer(policy, context.config.model)
    rows, tokens = context.prompts("prompts", tokenizer, config.max_response_tokens)
    order = generator(seed, Stream.COLLECT_PROMPTS).permutation(len(rows))
    # Drawn from the seed alone, so that the lines that are there say how far an interrupted run got.
    prompt_ids = order[: config.prompts].tolist()
    rollouts = context.fleets.rollouts(policy)
    load_weights(context, policy)
    decoding = context.decoding("collect", temperature=1.0)
    # Without the sft stage the policy is a model of the user's, not a version of this run.
    is_own = policy == context.run.paths.stage("sft").model
    source = {"model": context.config.name, "version": "sft-0" if is_own else policy.name}
    sampled = SampledPrompts(rows, tokenizer, source, decoding, config.responses)
    seeds = response_seeds(seed, Stream.COLLECT_SEEDS, (), prompt_ids, config.responses)
    write_responses(rollouts, sampled, [tokens[i] for i in prompt_ids], prompt_ids, seeds, path, "collect")


def write_responses(
    rollouts: RolloutFleet,
    sampled: SampledPrompts,
    prompts: Sequence[Sequence[int]],
    prompt_ids: Sequence[int],
    seeds: Sequence[int],
    path: Path,
    title: str,
) -> None:
    """Appends a record for each prompt, `CHUNK` prompts at a time; continues after what an interrupted run
    has written. `seeds` has one for each response, prompt by prompt."""
    truncate_partial_line(path)
    done, n = len(read_jsonl(path)), sampled.responses
    with (
        open(path, "a", encoding="utf-8") as file,
        progress(title, total=len(prompt_ids), done=done) as bar,
    ):
        for start in range(done, len(prompt_ids), CHUNK):
            chunk = slice(start, start + CHUNK)
            refs = rollouts.generate(
                prompts[chunk],
                prompt_ids[chunk],
                sampled.decoding,
                end_token(sampled.tokenizer),
                n,
                seeds[start * n : (start + CHUNK) * n],
            )
            for samples in rollouts.wait(refs, "generate"):
                for record in sampled.records(samples):
                    file.write(to_json(record.stored_row()) + "\n")
            file.flush()  # an interrupted run keeps whole chunks
            bar.advance(len(prompt_ids[chunk]), f"{n} responses each")


@dataclass(frozen=True)
class SampledPrompts:
    """Makes records of what engines sample."""

    rows: list[dict[str, Any]]
    tokenizer: PreTrainedTokenizerBase
    source: dict[str, str]
    """Model and version that a record says its responses are from."""
    decoding: Decoding
    responses: int

    def records(self, samples: Samples) -> Iterator[ResponsesRecord]:
        """One record for each prompt, whose responses stand side by side in `samples`."""
        token_ids = [samples.response(b) for b in range(samples.size)]
        texts = response_texts(self.tokenizer, token_ids)
        for start in range(0, samples.size, self.responses):
            end = start + self.responses
            row = self.rows[samples.prompt_ids_B[start]]
            yield ResponsesRecord.parse(
                {
                    "prompt": row["prompt"],
                    "row": row,
                    "responses": texts[start:end],
                    "ended": samples.ended_B[start:end].tolist(),
                    "policy": [self.source] * self.responses,
                    "decoding": [self.decoding.model_dump()] * self.responses,
                }
            )


def label(context: Context, collected: Sequence[ResponsesRecord]) -> dict[str, Any]:
    """Has the simulated labelers rank the responses, and writes the rankings. Returns counts and
    the labelers' pairwise agreement."""
    all_rankings: Iterable[list[dict[str, Any]]]
    if context.config.collect.workplace:
        from cluster.stages.collect_workplace import rank_in_workplace

        all_rankings = rank_in_workplace(context, collected)
    else:
        all_rankings = rank_here(context, collected)
    rows: list[dict[str, Any]] = []
    agreeing = compared = 0
    for rankings in all_rankings:
        rows += rankings
        if len(rankings) == 2:
            same, opposite = count_same_and_opposite(*[row["ranks"] for row in rankings])
            agreeing += same
            compared += same + opposite
    write_jsonl(context.run.paths.rankings, rows)
    return {
        "prompts": len(collected),
        "rankings": len(rows),
        "labelers": context.config.collect.labelers,
        "agreement/labelers": agreeing / max(1, compared),
        "agreement/pairs": compared,
    }


def rank_here(context: Context, collected: Sequence[ResponsesRecord]) -> Iterator[list[dict[str, Any]]]:
    """The rankings of each record by simulated labelers in this process."""
    config, seed = context.config.collect, context.config.seed
    labelers = make_labelers(config.labelers, seed, config.error_rate)
    assignment_rng = generator(seed, Stream.LABELER_ASSIGNMENT)
    # Two streams: how often a second labeler is drawn must not change what the first one thinks.
    error_rng = random.Random(derived_seed(seed, Stream.LABELER_ERRORS))
    for record in collected:
        order = assignment_rng.permutation(len(labelers))
        # A second labeler for some of the prompts, to measure agreement.
        count = 1 + int(assignment_rng.random() < config.overlap)
        rankings = []
        for i in order[:count]:
            ranks = labelers[i].rank(record.row, record.responses, record.ended, error_rng)
            rankings.append(_ranked(record, ranks, labelers[i].name))
        yield rankings


def count_same_and_opposite(first: Sequence[int], second: Sequence[int]) -> tuple[int, int]:
    """How many pairs two rankings order alike, and how many in opposite ways; a tie in either is
    neither."""
    first_pairs, second_pairs = set(ranking_pairs(first)), set(ranking_pairs(second))
    reversed_pairs = {(worse, better) for better, worse in second_pairs}
    return len(first_pairs & second_pairs), len(first_pairs & reversed_pairs)


def _ranked(record: ResponsesRecord, ranks: list[int], labeler: str) -> dict[str, Any]:
    ranking = {**record.user_row(), "ranks": ranks, "labeler": labeler, "time": time.time()}
    return RankingRecord.parse(ranking).stored_row()
