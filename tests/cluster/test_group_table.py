"""The states of groups and the load of engines, without Ray."""

import pytest

from actors.prompt_group import PromptGroup
from cluster.rl.group_table import GroupState, GroupTable

MAX_TOKENS = 4


class Prompts:
    """Groups whose prompts have these lengths, over and over."""

    def __init__(self, lengths, num_seeds):
        self.rows = [{"row": i} for i in range(len(lengths))]
        self.lengths, self.num_seeds = lengths, num_seeds

    def __getitem__(self, index):
        row = index % len(self.rows)
        return PromptGroup(index, row, [1] * self.lengths[row], [0] * self.num_seeds[row])


def table(lengths=(1,) * 6, num_seeds=(2,) * 6, state=None):
    return GroupTable(Prompts(lengths, num_seeds), MAX_TOKENS, state)


def held(table, engines=2):
    return [table.in_flight(engine) for engine in range(engines)]


@pytest.mark.parametrize(
    ("lengths", "num_seeds", "expected"),
    [
        # Equal costs: the number of groups is balanced.
        ((1,) * 6, (2,) * 6, [[0, 2, 4], [1, 3, 5]]),
        # One prompt costs as much as many short ones: 104 tokens beside 5 each.
        ((100, 1, 1, 1, 1, 1), (1,) * 6, [[0], [1, 2, 3, 4, 5]]),
        # One group has many responses: 50 tokens beside 5 each.
        ((1,) * 6, (10, 1, 1, 1, 1, 1), [[0], [1, 2, 3, 4, 5]]),
        # Responses may be as long as the limit: 8 tokens beside 5 each, not 4 beside 1.
        ((4, 1, 1, 1, 1, 1), (1,) * 6, [[0, 3, 5], [1, 2, 4]]),
    ],
)
def test_assign_balances_tokens_and_not_groups(lengths, num_seeds, expected):
    groups = table(lengths, num_seeds)
    groups.assign(6, engines=2)
    assert held(groups) == expected


def test_a_finished_group_is_no_load_any_more():
    groups = table((50, 1, 20, 1, 1, 1), (1,) * 6)
    groups.assign(3, engines=2)
    assert held(groups) == [[0], [1, 2]]
    groups.finish(0, [0])
    groups.assign(1, engines=2)
    assert held(groups) == [[3], [1, 2]]


def test_a_group_goes_through_all_states():
    groups = table()
    states = [groups.state_of(0)]
    groups.assign(2, engines=1)
    states.append(groups.state_of(0))
    groups.finish(0, [0])
    states.append(groups.state_of(0))
    assert [group.index for group in groups.hand_over([0])] == [0]
    states.append(groups.state_of(0))
    assert states == [GroupState.QUEUED, GroupState.IN_FLIGHT, GroupState.FINISHED, GroupState.BATCHED]
    assert groups.state_of(1) is GroupState.IN_FLIGHT
    assert groups.num_outstanding == 1


def test_a_dropped_group_is_queued_before_new_ones():
    groups = table()
    groups.assign(3, engines=1)
    groups.requeue(0, [1])
    assert groups.state_of(1) is GroupState.QUEUED
    assert groups.state == {"next_index": 3, "requeued": [0, 1, 2]}
    groups.take_unsent(0)
    groups.assign(2, engines=1)
    assert [group.index for group in groups.take_unsent(0)] == [1, 3]


def test_groups_of_engines_that_leave_are_queued_again():
    groups = table()
    groups.assign(6, engines=3)
    groups.finish(2, [2])
    groups.requeue_engines(first=1)
    assert held(groups, 3) == [[0, 3], [], []]
    assert [groups.state_of(index) for index in (1, 4, 5)] == [GroupState.QUEUED] * 3
    assert groups.state_of(2) is GroupState.FINISHED
    groups.assign(3, engines=1)
    assert held(groups, 1) == [[0, 3, 1, 4, 5]]


def test_each_engine_gets_its_groups_once():
    groups = table()
    groups.assign(4, engines=2)
    assert [group.index for group in groups.take_unsent(0)] == [0, 2]
    assert groups.take_unsent(0) == []
    groups.assign(1, engines=2)
    assert [group.index for group in groups.take_unsent(0)] == [4]


def test_a_batch_takes_finished_groups_only():
    groups = table()
    groups.assign(2, engines=1)
    with pytest.raises(ValueError, match="group 1 is in a batch, but its state is IN_FLIGHT"):
        groups.hand_over([1])


def test_a_checkpoint_queues_outstanding_groups_again():
    groups = table()
    groups.assign(5, engines=2)
    groups.finish(0, [0, 4])
    groups.hand_over([0])
    state = groups.state
    assert state == {"next_index": 5, "requeued": [1, 2, 3, 4]}
    continued = table(state=state)
    continued.assign(5, engines=1)
    assert [group.index for group in continued.take_unsent(0)] == [1, 2, 3, 4, 5]
    assert continued.state_of(0) is GroupState.BATCHED


def test_rows_of_outstanding_groups_are_by_prompt_id():
    groups = table()
    groups.assign(3, engines=1)
    assert groups.rows_of([0, 2]) == {0: {"row": 0}, 2: {"row": 2}}
