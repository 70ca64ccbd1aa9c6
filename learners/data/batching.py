"""Cuts a batch of ragged sequences into micro-batches by token count, balanced over ranks.

Every learner rank calls this with the same lengths and gets the same plan, so ranks need not
agree by a message. All ranks get the same number of micro-batches (a collective runs in each
backward pass under ZeRO); where there are fewer sequences than that, some micro-batches are
empty. `learners.data.packing` lays a micro-batch out in rows."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from common.errors import UserError

# Length of a packed row in multiples of its longest sequence. Shorter rows come out uneven, so
# more is padded; longer ones cost more attention, which grows with the square of the length.
SHORTEST_ROW, LONGEST_ROW = 3, 6
# The same for groups that share a prompt: they are longer, and their attention mask makes every
# token of a row cost as much as the row is long.
SHORTEST_SHARED_ROW, LONGEST_SHARED_ROW = 1, 2

Plan = list[list[list[int]]]
"""plan[rank][micro] is a list of sequence indices."""


def plan_micro_batches(
    lengths: Sequence[int] | np.ndarray,
    ranks: int,
    budget: int,
    packing: bool = False,
    is_shared: bool = False,
    budget_key: str = "learners.micro_batch_tokens",
) -> Plan:
    """`plan[rank][micro]` is a list of sequence indices whose padded size is at most `budget`
    tokens, the value of the config's `budget_key`. With `is_shared` an item is not a sequence but a
    group of sequences that share a prompt.

    Sequences of similar length share a micro-batch, so little is padded; packed, each has long
    and short ones, which fill rows evenly. The ranks' token sums are near each other. Raises
    UserError if one sequence alone is over the budget."""
    lengths = np.asarray(lengths)
    if len(lengths) and lengths.max() > budget:
        raise UserError(f"a sequence of {lengths.max()} tokens does not fit {budget_key}={budget}; raise it")
    # The fewest micro-batches for each rank that could hold the tokens.
    rounds = max(1, _ceil_div(int(lengths.sum()), ranks * budget))
    micro_batches = _divide(lengths, ranks * rounds, packing)
    # Padding decides how many are needed, and is only known after dividing.
    while not _all_fit(lengths, micro_batches, budget, packing, is_shared):
        rounds += 1
        micro_batches = _divide(lengths, ranks * rounds, packing)
    return _deal_to_ranks(lengths, micro_batches, ranks)


def plan_responses(
    sequences: Sequence[np.ndarray],
    prompt_lengths: np.ndarray,
    ranks: int,
    budget: int,
    packing: bool,
    shares_prompts: bool,
    budget_key: str = "learners.micro_batch_tokens",
) -> Plan:
    """`plan_micro_batches` of prompts with their responses. With `shares_prompts` the responses to a
    prompt are in one micro-batch, which counts the prompt once."""
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    if not shares_prompts:
        return plan_micro_batches(lengths, ranks, budget, packing, budget_key=budget_key)
    groups = group_by_prompt(sequences, prompt_lengths, budget)
    costs = [group_length(lengths[group].tolist(), int(prompt_lengths[group[0]])) for group in groups]
    plan: Plan = []
    for of_rank in plan_micro_batches(costs, ranks, budget, packing, True, budget_key):
        plan.append([[i for g in micro for i in groups[g]] for micro in of_rank])
    return plan


def group_by_prompt(
    sequences: Sequence[np.ndarray],
    prompt_lengths: Sequence[int] | np.ndarray,
    budget: int | None = None,
) -> list[list[int]]:
    """Indices of the sequences that begin with the same prompt, group by group. A group that would
    take more than `budget` tokens is divided, and its parts repeat the prompt."""
    groups: dict[bytes, list[list[int]]] = {}
    lengths: dict[bytes, int] = {}
    for i, sequence in enumerate(sequences):
        prompt = sequence[: prompt_lengths[i]].tobytes()
        added = len(sequence) - int(prompt_lengths[i])
        if prompt in groups and (budget is None or lengths[prompt] + added <= budget):
            groups[prompt][-1].append(i)
            lengths[prompt] += added
        else:
            groups.setdefault(prompt, []).append([i])
            lengths[prompt] = len(sequence)
    return [group for parts in groups.values() for group in parts]


def group_length(lengths: Sequence[int], prompt_length: int) -> int:
    """Tokens that sequences of these lengths take in a row in which their prompt stands once."""
    return int(sum(lengths)) - (len(lengths) - 1) * prompt_length


def common_prefix(sequences: Sequence[np.ndarray]) -> int:
    """How many tokens all sequences begin with, short of the whole of the shortest one."""
    longest = min(len(sequence) for sequence in sequences) - 1
    heads = np.stack([sequence[:longest] for sequence in sequences])
    differs = np.flatnonzero((heads != heads[0]).any(axis=0))
    return int(differs[0]) if len(differs) else longest


def _divide(lengths: np.ndarray, count: int, packing: bool) -> list[np.ndarray]:
    if packing:
        return balance_bins(lengths, count)
    return split_contiguous(lengths, np.argsort(-lengths, kind="stable"), count)


def _all_fit(
    lengths: np.ndarray, micro_batches: list[np.ndarray], budget: int, packing: bool, is_shared: bool
) -> bool:
    for micro in micro_batches:
        if (
            len(micro)
            and _padded_size(lengths[micro], assign_rows(lengths[micro], packing, is_shared)) > budget
        ):
            return False
    return True


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


def _padded_size(lengths: np.ndarray, rows: Sequence[Sequence[int] | np.ndarray]) -> int:
    """Tokens of a micro-batch in these rows, with its padding."""
    longest = max(int(lengths[row].sum()) for row in rows)
    return longest * len(rows)


def assign_rows(
    lengths: Sequence[int] | np.ndarray, packing: bool, is_shared: bool = False
) -> list[list[int]]:
    """Which sequences of a micro-batch share a row: each has its own or, packed, they fill rows
    of about equal length, as many as leave least padding. Sequences that are equally long need no
    packing."""
    lengths = np.asarray(lengths)
    if not packing or not len(lengths) or lengths.min() == lengths.max():
        return [[i] for i in range(len(lengths))]
    total, longest = int(lengths.sum()), int(lengths.max())
    shortest_row, longest_row = SHORTEST_ROW, LONGEST_ROW
    if is_shared:
        shortest_row, longest_row = SHORTEST_SHARED_ROW, LONGEST_SHARED_ROW
    fewest = _ceil_div(total, longest_row * longest)
    most = _ceil_div(total, shortest_row * longest)
    layouts = [balance_bins(lengths, count) for count in range(fewest, most + 1)]
    best = min(layouts, key=lambda rows: _padded_size(lengths, rows))
    return [row.tolist() for row in best]


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)
