"""CPU seconds in which a scoring actor scores a batch in packed rows, over padded ones.

    python -m bench.scoring [--responses 256] [--rounds 7] [--threads 1]

Reward model and reference policy of the quickstart's size with random weights, float32; prompts and
responses as long as the quickstart's. Both ways alternate in one process; medians and range.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from actors.config import ScoringConfig
from actors.reward_config import RewardsConfig
from actors.scoring import ScoringActor
from bench.common import print_header, print_row, spread, start_parser
from learners.config import ModelConfig
from learners.data.samples import Samples, offsets_of
from learners.data.tokenizer import train_tokenizer
from learners.models import build_policy, scalar_from_policy

MODEL = ModelConfig()
PROMPT_TOKENS, RESPONSE_TOKENS = (8, 24), (3, 32)


def main() -> None:
    parser = start_parser(__doc__)
    parser.add_argument("--responses", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        actor = make_actor(Path(folder), arguments.threads)
    samples = make_samples(arguments.responses)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    values: dict[bool, np.ndarray] = {}
    # The first round, which warms up, is not counted.
    for counted in (False, *([True] * arguments.rounds)):
        for packing, measured in seconds.items():
            actor.packing = packing
            started = time.process_time()
            scores, ref_logprobs_N = actor.score(samples, 1.0, {})
            elapsed = time.process_time() - started
            assert ref_logprobs_N is not None
            values[packing] = np.concatenate([scores.raw_CB[0], ref_logprobs_N])
            if counted:
                measured.append(elapsed)
    difference = np.abs(values[True] - values[False]).max() / np.abs(values[False]).max()
    print_header(("rows", "CPU seconds", "speed over padded"))
    print_row(("padded", spread(seconds[False]), "1.00"))
    print_row(("packed", spread(seconds[True]), f"{median(seconds[False]) / median(seconds[True]):.2f}"))
    print(f"\n{samples.offsets[-1]} tokens; largest relative difference of the values {difference:.1e}")


def make_actor(folder: Path, threads: int) -> ScoringActor:
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, rng.integers(97, 123, 2000))) for _ in range(50)]
    tokenizer = train_tokenizer(texts, MODEL.approx_vocab_size)
    build_policy(MODEL, tokenizer, seed=0).save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    scalar_from_policy(folder / "policy", seed=1).save_pretrained(folder / "reward")
    config = ScoringConfig(threads=threads, dtype="float32")
    return ScoringActor(str(folder / "policy"), str(folder / "reward"), config, RewardsConfig(), MODEL)


def make_samples(size: int) -> Samples:
    rng = np.random.default_rng(0)
    prompts, lengths = rng.integers(*PROMPT_TOKENS, size), rng.integers(*RESPONSE_TOKENS, size)
    total = int((prompts + lengths).sum())
    return Samples(
        tokens_N=rng.integers(8, MODEL.approx_vocab_size, total).astype(np.int32),
        offsets=offsets_of(prompts + lengths),
        prompt_lengths_B=prompts.astype(np.int32),
        logprobs_N=np.zeros(total, dtype=np.float32),
        versions_N=np.zeros(total, dtype=np.int32),
        prompt_ids_B=np.arange(size),
        ended_B=np.ones(size, dtype=bool),
    )


if __name__ == "__main__":
    main()
