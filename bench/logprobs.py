"""Memory and time of log-probabilities with their gradients: logits of all tokens at once, which is the
baseline, against chunks of tokens.

    python -m bench.logprobs [--vocabulary 150000] [--width 896] [--tokens 1024 2048] [--dtype float32]

Each measurement is a process of its own: one forward and backward pass of a head, hidden states (N, D)
to log-probabilities (N,), after a small one that is not counted. "Peak" is resident memory over that
before the pass; it contains the gradient of the head's matrix. Baseline and chunks alternate; medians
and range of the rounds.
"""

from __future__ import annotations

import multiprocessing
import re
import time
from argparse import Namespace
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.common import print_header, print_row, spread, start_parser
from learners.logprobs import chunked_logprobs, num_chunks
from learners.models import DTYPES

COLUMNS = ("tokens", "pass", "way", "chunks", "peak, MiB", "seconds", "memory over baseline", "time over it")


def at_once(weight_VD: Tensor, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
    """The baseline, as the system computed it before."""
    log_p_NV = F.log_softmax(F.linear(hidden_ND, weight_VD).float() / 1.0, dim=-1)
    return log_p_NV.gather(-1, targets_N[:, None]).squeeze(-1)


def in_chunks(weight_VD: Tensor, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
    head = partial(F.linear, weight=weight_VD)
    chunks = num_chunks(len(hidden_ND), len(weight_VD))
    return chunked_logprobs(head, hidden_ND, targets_N, chunks=chunks)[0]


WAYS = {"at once": at_once, "in chunks": in_chunks}


def main() -> None:
    parser = start_parser(__doc__)
    parser.add_argument("--vocabulary", type=int, default=150_000)
    parser.add_argument("--width", type=int, default=896)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(f"vocabulary {arguments.vocabulary}, width {arguments.width}, {arguments.dtype}\n")
    print_header(COLUMNS)
    for tokens in arguments.tokens:
        for backward in (True, False):
            compare(tokens, backward, arguments)


def compare(tokens: int, backward: bool, arguments: Namespace) -> None:
    """Two rows: the baseline and the chunks, measured in turns."""
    results: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for _ in range(arguments.rounds):
        for way, measured in results.items():
            measured.append(in_own_process(way, tokens, backward, arguments))
    memory = {way: median(mib for mib, _ in measured) for way, measured in results.items()}
    seconds = {way: median(s for _, s in measured) for way, measured in results.items()}
    for way, measured in results.items():
        chunks = num_chunks(tokens, arguments.vocabulary) if way == "in chunks" else 1
        print_row(
            [
                tokens,
                "forward and backward" if backward else "forward",
                way,
                chunks,
                f"{memory[way]:.0f}",
                spread([s for _, s in measured], ".2f"),
                f"{memory[way] / memory['at once']:.2f}",
                f"{seconds[way] / seconds['at once']:.2f}",
            ]
        )


def in_own_process(way: str, tokens: int, backward: bool, arguments: Namespace) -> tuple[float, float]:
    """(MiB, seconds), so that one measurement leaves no memory to the next."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(measure, (way, tokens, backward, arguments))


def measure(way: str, tokens: int, backward: bool, arguments: Namespace) -> tuple[float, float]:
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    dtype = DTYPES[arguments.dtype]
    weight_VD = torch.randn(arguments.vocabulary, arguments.width, dtype=dtype) / arguments.width**0.5
    run(way, weight_VD[:300].clone(), 64, backward)
    before = forget_peak()
    started = time.perf_counter()
    run(way, weight_VD, tokens, backward)
    return peak_mib() - before, time.perf_counter() - started


def run(way: str, weight_VD: Tensor, tokens: int, backward: bool) -> None:
    hidden_ND = torch.randn(tokens, weight_VD.shape[1], dtype=weight_VD.dtype, requires_grad=backward)
    weight_VD.requires_grad_(backward)
    targets_N = torch.randint(0, len(weight_VD), (tokens,))
    with torch.set_grad_enabled(backward):
        logprobs_N = WAYS[way](weight_VD, hidden_ND, targets_N)
    if backward:
        logprobs_N.sum().backward()


def forget_peak() -> float:
    """Resident memory now, MiB, from which on peaks count."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_mib()


def peak_mib() -> float:
    """Largest resident memory of this process so far. Linux only."""
    status = Path("/proc/self/status").read_text()
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match
    return int(match[1]) / 1024


if __name__ == "__main__":
    main()
