"""A group's prompt and seeds depend on the run's seed and the group's index alone."""

import pytest

from cluster.rl.prompt_stream import PromptStream
from learners.rl.config import PPOConfig

ROWS = [{"prompt": f"p{i}"} for i in range(10)]
TOKENS = [[i, i + 1] for i in range(10)]


def stream(seed=0, **config):
    return PromptStream(ROWS, TOKENS, PPOConfig(**{"prompts": 4, "responses": 2, **config}), seed)


def prompt_ids(stream, start, stop):
    return [stream[index].prompt_id for index in range(start, stop)]


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_every_epoch_has_each_prompt_once(epoch):
    assert sorted(prompt_ids(stream(), 10 * epoch, 10 * epoch + 10)) == list(range(10))


def test_epochs_differ_in_their_order():
    orders = {tuple(prompt_ids(stream(), 10 * epoch, 10 * epoch + 10)) for epoch in range(5)}
    assert len(orders) == 5


def test_a_group_has_the_tokens_of_its_prompt_and_its_index():
    for index in (0, 9, 10, 123):
        group = stream()[index]
        assert group.index == index
        assert group.tokens == TOKENS[group.prompt_id]


def test_an_index_gives_the_same_group_in_any_order_of_access():
    forward = stream()
    in_order = [forward[index] for index in range(25)]
    backward = stream()
    assert [backward[index] for index in reversed(range(25))][::-1] == in_order
    # A run that starts again begins in the middle of the sequence.
    assert stream()[17] == in_order[17]
    assert forward[3] == in_order[3]


def test_groups_do_not_depend_on_the_batch_size():
    small, large = stream(prompts=2), stream(prompts=8)
    assert [small[index] for index in range(25)] == [large[index] for index in range(25)]


def test_each_response_has_a_seed_of_its_own():
    seeds = [seed for index in range(1000) for seed in stream(responses=4)[index].seeds]
    assert len(set(seeds)) == len(seeds) == 4000
    assert 0 <= min(seeds) <= max(seeds) < 2**31


def test_another_seed_gives_another_order_and_other_seeds():
    one, other = stream(seed=0), stream(seed=1)
    assert prompt_ids(one, 0, 10) != prompt_ids(other, 0, 10)
    assert one[0].seeds != other[0].seeds
