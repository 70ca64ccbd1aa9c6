import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learners.batching import pad, plan_micro_batches
from learners.errors import UserError
from learners.ragged import Samples, offsets_of


@given(st.lists(st.integers(1, 60), max_size=80), st.integers(1, 5), st.integers(60, 400))
def test_every_sequence_is_in_one_micro_batch_within_the_budget_and_ranks_have_equally_many(lengths, ranks, budget):
    plan = plan_micro_batches(lengths, ranks, budget)
    assert sorted(i for rank in plan for micro in rank for i in micro) == list(range(len(lengths)))
    assert len({len(rank) for rank in plan}) == 1
    assert all(max(lengths[i] for i in micro) * len(micro) <= budget for rank in plan for micro in rank if micro)


def test_ranks_get_about_the_same_number_of_tokens():
    lengths = np.random.default_rng(0).integers(5, 60, size=256)
    plan = plan_micro_batches(lengths, 4, 1024)
    loads = [sum(int(lengths[micro].sum()) for micro in rank) for rank in plan]
    assert max(loads) < 1.1 * min(loads)


def test_little_is_padded():
    lengths = np.random.default_rng(0).integers(5, 60, size=256)
    plan = plan_micro_batches(lengths, 2, 2048)
    padded = sum(int(lengths[micro].max()) * len(micro) for rank in plan for micro in rank)
    assert lengths.sum() / padded > 0.85


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


def test_samples_can_be_taken_apart_and_joined():
    whole = samples([[1, 2], [3]], [[4], [5, 6, 7]])
    assert whole.response(1).tolist() == [5, 6, 7]
    assert whole.response_mask_N.tolist() == [False, False, True, False, True, True, True]
    swapped = Samples.concat([whole.select([1]), whole.select([0])])
    assert swapped.sequence(0).tolist() == [3, 5, 6, 7]
    assert swapped.sequence(1).tolist() == [1, 2, 4]
    assert swapped.logprobs_N.tolist() == [-3, -5, -6, -7, -1, -2, -4]
    assert swapped.prompt_ids_B.tolist() == [1, 0]
