"""Cuts a batch of ragged sequences into micro-batches by token count, balanced over ranks.

Every learner rank calls this with the same lengths and gets the same plan, so ranks need not
agree by a message. All ranks get the same number of micro-batches (a collective runs in each
backward pass under ZeRO); where there are fewer sequences than that, some micro-batches are
empty. `learners.data.packing` lays a micro-batch out in rows.

`span` says how sequences stand in rows: with None each has a row of its own; a number is the length of a
row whose attention costs as much as all else that the model computes for it, so that a packed row of L tokens
costs L (1 + L / span). It is infinite where a kernel computes nothing between sequences
(`learners.forward_checks.attention_span`)."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from operator import itemgetter

import numpy as np

from common.errors import UserError

ROW_LENGTHS = (6, 5, 4, 3, 2.5, 2, 1.5, 1)
"""Of packed rows that are tried, in multiples of the longest sequence."""

Plan = list[list[list[int]]]
"""plan[rank][micro] is a list of sequence indices."""


def plan_micro_batches(
    lengths: Sequence[int] | np.ndarray,
    ranks: int,
    budget: int,
    span: float | None = None,
    budget_key: str = "learners.micro_batch_tokens",
) -> Plan:
    """`plan[rank][micro]` is a list of sequence indices whose padded size is at most `budget`
    tokens, the value of the config's `budget_key`. An item may also be a group of sequences that share a
    prompt, with the tokens that it takes in a row.

    Sequences of similar length share a micro-batch, so little is padded; packed, each has long
    and short ones, which fill rows evenly, where that costs less. The ranks' token sums are near each
    other. Raises UserError if one sequence alone is over the budget."""
    lengths = np.asarray(lengths)
    if len(lengths) and lengths.max() > budget:
        raise UserError(f"a sequence of {lengths.max()} tokens does not fit {budget_key}={budget}; raise it")
    divisions = [_divide(lengths, ranks, budget, span, mixed=False)]
    if span is not None:
        divisions.append(_divide(lengths, ranks, budget, span, mixed=True))
    _, cheapest = min(divisions, key=itemgetter(0))
    return _deal_to_ranks(lengths, cheapest, ranks)


def plan_responses(
    sequences: Sequence[np.ndarray],
    prompt_lengths: np.ndarray,
    ranks: int,
    budget: int,
    span: float | None,
    shares_prompts: bool,
    budget_key: str = "learners.micro_batch_tokens",
) -> Plan:
    """`plan_micro_batches` of prompts with their responses. With `shares_prompts` responses to a
    prompt are in one micro-batch, which counts the prompt once."""
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    if not shares_prompts:
        return plan_micro_batches(lengths, ranks, budget, span, budget_key=budget_key)
    groups = group_by_prompt(sequences, prompt_lengths, span, budget)
    costs = [group_length(lengths[group].tolist(), int(prompt_lengths[group[0]])) for group in groups]
    plan: Plan = []
    for of_rank in plan_micro_batches(costs, ranks, budget, span, budget_key):
        plan.append([[i for g in micro for i in groups[g]] for micro in of_rank])
    return plan


def group_by_prompt(
    sequences: Sequence[np.ndarray],
    prompt_lengths: Sequence[int] | np.ndarray,
    span: float | None,
    budget: float = math.inf,
) -> list[list[int]]:
    """Indices of the sequences that begin with the same prompt, group by group. A group that would
    take more than `budget` tokens, or whose row would be longer than pays, is divided, and its parts repeat
    the prompt."""
    groups: dict[bytes, list[list[int]]] = {}
    lengths: dict[bytes, int] = {}
    for i, sequence in enumerate(sequences):
        prompt_length = int(prompt_lengths[i])
        prompt, added = sequence[:prompt_length].tobytes(), len(sequence) - prompt_length
        longest = min(budget, longest_shared(prompt_length, span))
        if prompt in groups and lengths[prompt] + added <= longest:
            groups[prompt][-1].append(i)
            lengths[prompt] += added
        else:
            groups.setdefault(prompt, []).append([i])
            lengths[prompt] = len(sequence)
    return [group for parts in groups.values() for group in parts]


def longest_shared(prompt_length: int, span: float | None) -> float:
    """The length L of a row at which k responses of r tokens to a prompt of p tokens, L = p + k r, cost least
    each: L (1 + L / span) / k is least at L = p + sqrt(p (p + span)). Longer rows save less of the prompt
    than their attention costs."""
    if span is None or math.isinf(span):
        return math.inf
    return prompt_length + math.sqrt(prompt_length * (prompt_length + span))


def group_length(lengths: Sequence[int], prompt_length: int) -> int:
    """Tokens that sequences of these lengths take in a row in which their prompt stands once."""
    return int(sum(lengths)) - (len(lengths) - 1) * prompt_length


def common_prefix(sequences: Sequence[np.ndarray]) -> int:
    """How many tokens all sequences begin with, short of the whole of the shortest one."""
    longest = min(len(sequence) for sequence in sequences) - 1
    heads = np.stack([sequence[:longest] for sequence in sequences])
    differs = np.flatnonzero((heads != heads[0]).any(axis=0))
    return int(differs[0]) if len(differs) else longest


def _divide(
    lengths: np.ndarray, ranks: int, budget: int, span: float | None, mixed: bool
) -> tuple[float, list[np.ndarray]]:
    """The fewest micro-batches that fit, a multiple of `ranks`: each of long and short sequences, or each of
    similar ones. First what they cost, in tokens of a model without attention."""
    rounds = max(1, _ceil_div(int(lengths.sum()), ranks * budget))
    longest_first = np.argsort(-lengths, kind="stable")
    while True:
        count = ranks * rounds
        micros = balance_bins(lengths, count) if mixed else split_contiguous(lengths, longest_first, count)
        # Padding decides how many are needed, and is only known after dividing.
        layouts = [(lengths[micro], assign_rows(lengths[micro], span)) for micro in micros]
        if all(_width(members, rows) * len(rows) <= budget for members, rows in layouts):
            return sum(_cost(members, rows, span) for members, rows in layouts), micros
        rounds += 1


def _deal_to_ranks(lengths: np.ndarray, micro_batches: list[np.ndarray], ranks: int) -> Plan:
    """Largest micro-batches first, one to each rank in every turn, the larger to the rank that
    has less so far."""
    tokens = [int(lengths[micro].sum()) for micro in micro_batches]
    largest_first = sorted(range(len(micro_batches)), key=lambda i: -tokens[i])
    plan: Plan = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for start in range(0, len(largest_first), ranks):
        # Dealing in turns gives every rank equally many, and this order makes up for differences.
        lightest_first = sorted(range(ranks), key=lambda rank: loads[rank])
        for rank, i in zip(lightest_first, largest_first[start : start + ranks], strict=True):
            plan[rank].append(micro_batches[i].tolist())
            loads[rank] += tokens[i]
    return plan


def split_contiguous(lengths: np.ndarray, order: np.ndarray, count: int) -> list[np.ndarray]:
    """`order` in `count` runs of about equal token sums (some empty if there are fewer
    sequences)."""
    running = np.cumsum(lengths[order])
    total = running[-1] if len(running) else 0
    edges = np.searchsorted(running, total * np.arange(1, count) / count, side="right")
    return np.split(order, edges)


def balance_bins(lengths: np.ndarray, count: int) -> list[np.ndarray]:
    """All sequences in `count` bins of about equal token sums: the longest first, each to the bin
    that has least."""
    bins: list[list[int]] = [[] for _ in range(count)]
    # The lightest bin is at the top; equal ones by their index, so that every rank does the same.
    heap = [(0, index) for index in range(count)]
    for i in np.argsort(-lengths, kind="stable").tolist():
        least, index = heap[0]
        bins[index].append(i)
        heapq.heapreplace(heap, (least + int(lengths[i]), index))
    return [np.array(members, dtype=np.int64) for members in bins]


def _width(lengths: np.ndarray, rows: Sequence[list[int]]) -> int:
    return max((int(lengths[row].sum()) for row in rows), default=0)


def _cost(lengths: np.ndarray, rows: Sequence[list[int]], span: float | None) -> float:
    width = _width(lengths, rows)
    return len(rows) * width * (1 + width / (span or math.inf))


def assign_rows(lengths: Sequence[int] | np.ndarray, span: float | None) -> list[list[int]]:
    """Which sequences of a micro-batch share a row: each has its own or, packed, they fill rows
    of about equal length, as many as cost least. Sequences that are equally long need no
    packing."""
    lengths = np.asarray(lengths, dtype=np.int64)
    own = [[i] for i in range(len(lengths))]
    if span is None or not len(lengths) or lengths.min() == lengths.max():
        return own
    total, longest = int(lengths.sum()), int(lengths.max())
    layouts = [own]
    for count in sorted({math.ceil(total / (length * longest)) for length in ROW_LENGTHS}):
        layouts.append([row.tolist() for row in balance_bins(lengths, count)])
    return min(layouts, key=lambda rows: _cost(lengths, rows, span))


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)
