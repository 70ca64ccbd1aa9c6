"""Which items are held out: by a salted hash of each, whatever else there is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learners.data.split import (
    EmptySideError,
    assign_folds,
    held_out,
    linked_positions,
    prompt_positions,
    split_position,
    split_threshold,
)


def positions(keys):
    return [split_position(key) for key in keys]


def test_positions_are_a_published_function_of_the_key():
    # SHA-256 of "zero2hero held-out split 1", a zero byte and the key; its first 53 bits over 2**53.
    # Another value would move data that models were trained on to the held-out side.
    assert split_position("What is 1 plus 1?") == 0.7865056573588641


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_the_held_out_share_is_near_the_target(share):
    is_held = held_out(positions(f"prompt {i}" for i in range(20_000)), share)
    assert is_held.mean() == pytest.approx(share, rel=0.1)


@given(st.sets(st.text(), min_size=30), st.sets(st.text()), st.randoms())
def test_adding_data_never_moves_an_item_to_training(first, more, random):
    before = sorted(first)
    after = sorted(first | more)
    random.shuffle(after)
    held_before = {key for key, held in zip(before, held_out(positions(before), 0.2), strict=True) if held}
    held_after = {key for key, held in zip(after, held_out(positions(after), 0.2), strict=True) if held}
    if any(position < 0.2 for position in positions(before)):  # not by the rule for tiny data sets
        assert held_before <= held_after
        assert held_after & first == held_before


def test_an_item_stays_held_out_at_a_larger_share():
    keys = positions(str(i) for i in range(500))
    small, large = held_out(keys, 0.1), held_out(keys, 0.3)
    assert (small <= large).all()
    assert small.sum() < large.sum()


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_a_tiny_data_set_has_an_item_on_either_side(share):
    for count in (2, 3, 5):
        keys = positions(str(i) for i in range(count))
        is_held = held_out(keys, share)
        assert 0 < is_held.sum() < count
        # The ones that move are those next to the threshold.
        assert max(np.array(keys)[is_held]) < min(np.array(keys)[~is_held])
    with pytest.raises(EmptySideError, match="2 items at 1 positions"):
        held_out([0.4, 0.4], 0.1)


@pytest.mark.parametrize(("share", "threshold"), [(0.3, 0.3), (0.1, 0.2), (0.95, 0.6)])
def test_the_threshold_is_the_share_or_just_over_a_position(share, threshold):
    position_I = [0.2, 0.9, 0.6]
    limit = split_threshold(position_I, share)
    assert limit == pytest.approx(threshold, abs=1e-12)
    assert (held_out(position_I, share) == (np.array(position_I) < limit)).all()


def test_folds_hold_every_item_out_once_and_split_no_owner():
    owners = [i // 3 for i in range(50)]
    fold_I = assign_folds(positions(str(owner) for owner in owners), 5)
    folds = [fold_I == fold for fold in range(5)]
    assert (np.sum(folds, axis=0) == 1).all()
    assert all(4 <= fold.sum() <= 16 for fold in folds)
    for fold in folds:
        sides = [{bool(h) for o, h in zip(owners, fold, strict=True) if o == owner} for owner in set(owners)]
        assert all(len(side) == 1 for side in sides)
    with pytest.raises(EmptySideError, match="2 different items cannot be divided into 3 folds"):
        assign_folds([0.1, 0.1, 0.7], 3)


LINKS = [("p", "u"), ("q", "u"), ("q", "v"), ("r", "v"), ("s", "w"), ("t", None), ("u", None)]


def test_a_prompt_has_the_smallest_position_of_its_own_owners():
    links = list(LINKS)
    position_of = prompt_positions(*zip(*links, strict=True))
    u, v, w, t = positions("uvwt")
    assert position_of == {"p": u, "q": min(u, v), "r": v, "s": w, "t": t, "u": u}
    # An owner more can only make it smaller: nobody leaves the held-out side.
    for owner in "abcdefgh":
        links.append(("q", owner))
        more = prompt_positions(*zip(*links, strict=True))
        assert more["q"] == min(position_of["q"], split_position(owner))
        assert {**more, "q": 0} == {**position_of, "q": 0}  # other prompts of its owners stay
        position_of = more


def test_prompts_linked_by_owners_have_one_position_for_folds():
    links = list(LINKS)
    position_of = linked_positions(*zip(*links, strict=True))
    assert position_of["p"] == position_of["q"] == position_of["r"] == min(positions("uv"))
    assert [position_of[prompt] for prompt in "stu"] == positions("wtu")
    for owner in "abcdefgh":
        links.append(("p", owner))
        more = linked_positions(*zip(*links, strict=True))
        assert more["q"] == more["r"] == min(position_of["q"], split_position(owner))
        position_of = more
