"""What it costs to pack sequences and to share prompts in the rows of a forward pass.

    python -m bench.rows [--threads 2] [--rounds 3]

For each shape one training pass (log-probabilities of the responses and their gradients, float32) of a small
model of random weights, by three plans in turn: each sequence in a row of its own; rows as if attention to
the other sequences of a row cost nothing; and rows as `learners.forward_checks.attention_span` says for the
model. Lengths of responses differ by up to a half. Printed is the median over rounds, as tokens of the
sequences a second, with the ratio to rows of their own.
"""

from __future__ import annotations

import math
import statistics
import time

import numpy as np
import torch

from bench.common import print_header, print_row, spread, start_parser
from learners.config import ModelConfig
from learners.data.batching import plan_responses
from learners.data.packing import pack
from learners.data.tokenizer import train_tokenizer
from learners.forward_checks import attention_span
from learners.models import PolicyModule, build_policy

TEXTS = ["The number is 42, and the next one is 17.", "Ask again, or give the answer."] * 20
SHAPES = ((128, 60, 130, 16), (128, 16, 24, 2), (256, 16, 24, 8), (512, 128, 256, 8))
"""Width, tokens of a prompt, mean tokens of a response, responses to a prompt."""
TOKENS, BUDGET = 24_000, 8192


def sequences(prompt: int, response: int, responses: int) -> tuple[list[np.ndarray], np.ndarray]:
    """About `TOKENS` tokens of prompts with their responses, and the length of each one's prompt."""
    random = np.random.default_rng(0)
    found: list[np.ndarray] = []
    for _ in range(max(1, TOKENS // (responses * (prompt + response)))):
        head = random.integers(8, 60, prompt)
        for size in random.integers(response // 2, response * 3 // 2, responses):
            found.append(np.concatenate([head, random.integers(8, 60, size)]).astype(np.int32))
    return found, np.full(len(found), prompt)


def seconds(policy: PolicyModule, texts: list[np.ndarray], prompts: np.ndarray, span: float | None) -> float:
    """Of one training pass over all texts."""
    started = time.perf_counter()
    shares = span is not None
    for micro in plan_responses(texts, prompts, 1, BUDGET, span, shares)[0]:
        targets = [np.arange(len(texts[i])) >= prompts[i] for i in micro]
        packed = pack([texts[i] for i in micro], targets, 0, span, prompts[micro] if shares else None)
        logprobs_N, _ = policy(
            packed.tokens_RT,
            packed.target_mask_RT,
            packed.positions_RT,
            packed.before_N,
            packed.attention_RTT,
        )
        logprobs_N.sum().backward()
    return time.perf_counter() - started


def main() -> None:
    parser = start_parser(__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tokenizer = train_tokenizer(TEXTS, 64)
    print_header(["width", "prompt", "response", "responses", "rows", "tokens/s", "ratio"])
    for width, prompt, response, responses in SHAPES:
        config = ModelConfig(layers=4, width=width, heads=4, kv_heads=4, vocab_size=320, context=2048)
        policy = PolicyModule(build_policy(config, tokenizer, seed=0))
        texts, prompts = sequences(prompt, response, responses)
        plans = {"own": None, "as long as fits": math.inf, "as costs least": attention_span(policy.model)}
        rates: dict[str, list[float]] = {name: [] for name in plans}
        for turn in range(arguments.rounds + 1):
            for name, span in plans.items():
                rate = sum(map(len, texts)) / seconds(policy, texts, prompts, span)
                if turn:  # the first one warms up
                    rates[name].append(rate)
        for name, values in rates.items():
            ratio = statistics.median(values) / statistics.median(rates["own"])
            print_row([width, prompt, response, responses, name, spread(values, ",.0f"), f"{ratio:.2f}"])


if __name__ == "__main__":
    main()
