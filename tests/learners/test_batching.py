"""Micro-batches and rows: every sequence once, within the budget, balanced over ranks, little padded."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from learners.data.batching import assign_rows, longest_shared, plan_micro_batches
from learners.data.packing import pack, pad
from learners.data.samples import Samples, offsets_of

SPANS = st.sampled_from([None, 20.0, 500.0, math.inf])


def padded_size(lengths, micro, span):
    lengths = np.asarray(lengths)[micro]
    rows = assign_rows(lengths, span)
    return max(int(lengths[row].sum()) for row in rows) * len(rows)


@given(st.lists(st.integers(1, 60), max_size=80), st.integers(1, 5), st.integers(60, 400), SPANS)
def test_micro_batches_hold_every_sequence_once_within_the_budget(lengths, ranks, budget, span):
    plan = plan_micro_batches(lengths, ranks, budget, span)
    assert sorted(i for rank in plan for micro in rank for i in micro) == list(range(len(lengths)))
    assert len({len(rank) for rank in plan}) == 1
    assert all(padded_size(lengths, micro, span) <= budget for rank in plan for micro in rank if micro)


@pytest.mark.parametrize("span", [None, 100.0, math.inf])
def test_ranks_get_about_the_same_number_of_tokens(span):
    lengths = np.random.default_rng(0).integers(5, 60, size=256)
    plan = plan_micro_batches(lengths, 4, 1024, span)
    loads = [sum(int(lengths[micro].sum()) for micro in rank) for rank in plan]
    assert max(loads) < 1.1 * min(loads)


@pytest.mark.parametrize(("span", "waste"), [(None, 0.15), (math.inf, 0.02)])
def test_little_is_padded(span, waste):
    lengths = np.random.default_rng(0).integers(5, 60, size=256)
    plan = plan_micro_batches(lengths, 2, 2048, span)
    padded = sum(padded_size(lengths, micro, span) for rank in plan for micro in rank)
    assert 1 - lengths.sum() / padded < waste


def test_rows_whose_attention_costs_more_than_it_saves_are_not_made():
    """Long sequences beside a narrow model stand alone, sorted so that little is padded; short ones share
    rows, shorter ones than where attention costs nothing."""
    lengths = np.random.default_rng(0).integers(150, 220, size=64)
    assert all(len(row) == 1 for row in assign_rows(lengths, span=768.0))
    for micro in plan_micro_batches(lengths, 1, 4096, span=768.0)[0]:
        assert np.ptp(lengths[micro]) < 40
    short = np.random.default_rng(0).integers(5, 60, size=64)
    widest = {
        span: max(int(short[row].sum()) for row in assign_rows(short, span)) for span in (200, math.inf)
    }
    assert 60 < widest[200] < widest[math.inf]


@pytest.mark.parametrize(("prompt", "response", "span"), [(60, 130, 768), (500, 400, 24576), (12, 20, 1152)])
def test_a_shared_row_is_as_long_as_costs_least(prompt, response, span):
    def cost(k):
        length = prompt + k * response
        return length * (1 + length / span) / k

    best = min(range(1, 65), key=cost)
    assert abs((longest_shared(prompt, span) - prompt) / response - best) < 1


def test_packed_rows_keep_sequences_whole_with_their_positions():
    sequences = [np.arange(n) + 10 * n for n in (3, 1, 4, 2, 2)]
    rows = pack(sequences, [s == s[-1] for s in sequences], pad_token=-1, span=math.inf)
    real = rows.tokens_RT >= 0
    assert rows.tokens_RT[real].tolist() == np.concatenate([sequences[i] for i in rows.order]).tolist()
    assert rows.positions_RT[real].tolist() == [p for i in rows.order for p in range(len(sequences[i]))]
    assert rows.tokens_RT[rows.target_mask_RT].tolist() == [int(sequences[i][-1]) for i in rows.order]


def test_sequences_of_one_length_are_not_packed():
    assert pack([np.ones(4)] * 3, [np.ones(4, bool)] * 3, 0, span=math.inf).positions_RT is None


def test_a_sequence_over_the_budget_is_refused_with_both_numbers():
    with pytest.raises(UserError, match=r"300 tokens.*micro_batch_tokens=256"):
        plan_micro_batches([10, 300], 1, 256)


def test_an_empty_micro_batch_still_has_a_row_to_run():
    assert pad([], 7).tolist() == [[7]]


def samples(prompts, responses):
    tokens = [np.array(p + r, dtype=np.int32) for p, r in zip(prompts, responses, strict=True)]
    flat = np.concatenate(tokens)
    return Samples(
        tokens_N=flat,
        offsets=offsets_of([len(t) for t in tokens]),
        prompt_lengths_B=np.array([len(p) for p in prompts], dtype=np.int32),
        logprobs_N=-flat.astype(np.float32),
        versions_N=np.zeros(len(flat), dtype=np.int32),
        prompt_ids_B=np.arange(len(prompts)),
        ended_B=np.ones(len(prompts), dtype=bool),
    )


def test_samples_can_be_selected_and_concatenated():
    whole = samples([[1, 2], [3]], [[4], [5, 6, 7]])
    assert whole.response(1).tolist() == [5, 6, 7]
    assert whole.response_mask_N.tolist() == [False, False, True, False, True, True, True]
    swapped = Samples.concat([whole.select([1]), whole.select([0])])
    assert swapped.sequence(0).tolist() == [3, 5, 6, 7]
    assert swapped.sequence(1).tolist() == [1, 2, 4]
    assert swapped.logprobs_N.tolist() == [-3, -5, -6, -7, -1, -2, -4]
    assert swapped.prompt_ids_B.tolist() == [1, 0]
