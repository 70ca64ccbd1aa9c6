"""Stage 3: the SFT policy answers each prompt K times and labelers rank the responses.

responses.jsonl keeps every response with its decoding settings and policy version, as
`ResponsesRecord`s. rankings.jsonl is what the reward stage reads, as `RankingRecord`s: from
simulated labelers here, from people elsewhere."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from actors.config import Decoding
from cluster.context import Context
from cluster.quickstart.labelers import make_labelers
from cluster.rl.weight_sync import load_weights
from cluster.run.progress import progress
from common.files import read_jsonl, to_json, truncate_partial_line, write_jsonl
from common.random_streams import Stream, derived_seed, generator
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
    """Writes the responses, `CHUNK` prompts at a time; continues after what an interrupted run
    has written."""
    config, seed, path = context.config.collect, context.config.seed, context.run.paths.responses
    policy = context.run.model("sft")
    tokenizer = load_tokenizer(policy, context.config.model)
    rows, tokens = context.prompts("prompts", tokenizer, config.max_response_tokens)
    order = generator(seed, Stream.COLLECT_PROMPTS).permutation(len(rows))[: config.prompts]
    # The order is drawn from the seed alone, so the lines that are there say how far it got.
    truncate_partial_line(path)
    done = len(read_jsonl(path))
    rollouts = context.fleets.rollouts(policy)
    load_weights(context, policy)
    decoding = context.decoding("collect", temperature=1.0)
    # Without the sft stage the policy is a model of the user's, not a version of this run.
    is_own = policy == context.run.paths.stage("sft").model
    source = {"model": context.config.name, "version": "sft-0" if is_own else policy.name}
    sampled = SampledPrompts(rows, tokenizer, source, decoding, config.responses)
    with (
        open(path, "a", encoding="utf-8") as file,
        progress("collect", total=len(order), done=done) as bar,
    ):
        for start in range(done, len(order), CHUNK):
            prompt_ids = order[start : start + CHUNK].tolist()
            refs = rollouts.generate(
                [tokens[i] for i in prompt_ids],
                prompt_ids,
                decoding,
                end_token(tokenizer),
                config.responses,
                sample_seeds(seed, prompt_ids, config.responses),
            )
            for samples in rollouts.wait(refs, "generate"):
                for record in sampled.records(samples):
                    file.write(to_json(record.stored_row()) + "\n")
            file.flush()  # an interrupted run keeps whole chunks
            bar.advance(len(prompt_ids), f"{config.responses} responses each")


def sample_seeds(seed: int, prompt_ids: Sequence[int], responses: int) -> list[int]:
    """One for each response, prompt by prompt. They belong to the prompt, so that an interrupted
    collection continues with the numbers that it would have had."""
    seeds: list[int] = []
    for prompt_id in prompt_ids:
        rng = generator(seed, Stream.COLLECT_SEEDS, prompt_id)
        seeds += rng.integers(0, 2**31, size=responses).tolist()
    return seeds


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
    config, seed = context.config.collect, context.config.seed
    labelers = make_labelers(config.labelers, seed, config.error_rate)
    assignment_rng = generator(seed, Stream.LABELER_ASSIGNMENT)
    # Two streams: how often a second labeler is drawn must not change what the first one thinks.
    error_rng = random.Random(derived_seed(seed, Stream.LABELER_ERRORS))
    rows: list[dict[str, Any]] = []
    agreeing = compared = 0
    for record in collected:
        order = assignment_rng.permutation(len(labelers))
        # A second labeler for some of the prompts, to measure agreement.
        count = 1 + int(assignment_rng.random() < config.overlap)
        rankings: list[list[int]] = []
        for i in order[:count]:
            labeler = labelers[i]
            ranks = labeler.rank(record.row, record.responses, record.ended, error_rng)
            rankings.append(ranks)
            rows.append(_ranked(record, ranks, labeler.name))
        if len(rankings) == 2:
            same, opposite = count_same_and_opposite(*rankings)
            agreeing += same
            compared += same + opposite
    write_jsonl(context.run.paths.rankings, rows)
    return {
        "prompts": len(collected),
        "rankings": len(rows),
        "labelers": config.labelers,
        "agreement/labelers": agreeing / max(1, compared),
        "agreement/pairs": compared,
    }


def count_same_and_opposite(first: Sequence[int], second: Sequence[int]) -> tuple[int, int]:
    """How many pairs two rankings order alike, and how many in opposite ways; a tie in either is
    neither."""
    first_pairs, second_pairs = set(ranking_pairs(first)), set(ranking_pairs(second))
    reversed_pairs = {(worse, better) for better, worse in second_pairs}
    return len(first_pairs & second_pairs), len(first_pairs & reversed_pairs)


def _ranked(record: ResponsesRecord, ranks: list[int], labeler: str) -> dict[str, Any]:
    ranking = {**record.user_row(), "ranks": ranks, "labeler": labeler, "time": time.time()}
    return RankingRecord.parse(ranking).stored_row()
