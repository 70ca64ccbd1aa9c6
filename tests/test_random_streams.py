"""Random draws: named streams share no numbers, and nothing in the product draws outside of them."""

import ast
from pathlib import Path

import numpy as np
import pytest

from cluster.rl.prompt_stream import PromptStream
from common.random_streams import Stream, derived_seed, generator, response_seeds
from learners.rl.config import PPOConfig
from learners.rl.minibatches import minibatch_indices

ROOT = Path(__file__).parents[1]
PRODUCT = ("common", "actors", "learners", "cluster", "serve")
SOURCES = ("default_rng", "Random", "manual_seed")


def first_numbers(seed, stream, *counters):
    return tuple(generator(seed, stream, *counters).integers(0, 2**63, size=4).tolist())


@pytest.mark.parametrize("counters", [(), (0,), (3,), (3, 0), (0, 3)])
@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_no_two_streams_share_their_numbers(seed, counters):
    drawn = {first_numbers(seed, stream, *counters) for stream in Stream}
    assert len(drawn) == len(Stream)


def test_a_zero_counter_is_not_padding():
    # numpy pads a list of entropy: default_rng([7, 1]) and default_rng([7, 1, 0]) draw the same.
    drawn = {first_numbers(7, Stream.PPO_MINIBATCHES, *counters) for counters in ((), (0,), (0, 0))}
    assert len(drawn) == 3


def test_streams_of_one_seed_are_not_those_of_another():
    # With plain lists, stream 1 of seed 2 would be stream 2 of seed 1 in another order only.
    drawn = {first_numbers(seed, stream) for seed in range(20) for stream in Stream}
    assert len(drawn) == 20 * len(Stream)


def test_equal_arguments_give_equal_numbers():
    assert first_numbers(5, Stream.LABELERS, 2) == first_numbers(5, Stream.LABELERS, 2)
    assert derived_seed(5, Stream.POLICY_INIT) == derived_seed(5, Stream.POLICY_INIT)
    assert derived_seed(5, Stream.POLICY_INIT) != derived_seed(5, Stream.SCALAR_HEAD_INIT)


def test_minibatch_order_is_never_the_prompt_order():
    # Both were permutations by [seed, 3, 0] in iteration 3 and epoch 0.
    seed, size = 0, 128
    rows = [{"prompt": str(i)} for i in range(size)]
    stream = PromptStream(rows, [[i] for i in range(size)], PPOConfig(), seed)
    prompt_order = [stream[index].prompt_id for index in range(size)]
    for version in range(8):
        (minibatch,) = minibatch_indices(seed, version, epoch=0, prompt_ids_B=np.arange(size), count=1)
        assert minibatch.tolist() != prompt_order
        assert sorted(minibatch.tolist()) == list(range(size))


def test_minibatches_differ_between_epochs_and_iterations():
    orders = set()
    for version in range(4):
        for epoch in range(3):
            minibatches = minibatch_indices(0, version, epoch, np.arange(64), 4)
            orders.add(tuple(np.concatenate(minibatches).tolist()))
    assert len(orders) == 12


def test_responses_to_a_prompt_stay_together_in_a_minibatch():
    prompt_ids_B = np.array([7, 7, 3, 3, 9, 9, 5, 5])
    minibatches = minibatch_indices(0, 0, 0, prompt_ids_B, 2)
    assert sorted(np.concatenate(minibatches).tolist()) == list(range(8))
    for minibatch in minibatches:
        assert sorted(np.bincount(prompt_ids_B[minibatch], minlength=10)[[3, 5, 7, 9]]) == [0, 0, 2, 2]


def is_derived(call):
    """Whether a generator gets its seed from a named stream."""
    names = {node.id for node in ast.walk(call) if isinstance(node, ast.Name)}
    return bool(names & {"derived_seed", "generator"})


def test_the_product_draws_from_named_streams_alone():
    # The quickstart's data generator has a seed of its own, which is part of the data and not of the run.
    own_seed = ROOT / "cluster" / "quickstart"
    bare = []
    for package in PRODUCT:
        for path in (ROOT / package).rglob("*.py"):
            if path.is_relative_to(own_seed) or path.name == "random_streams.py":
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                is_source = isinstance(node, ast.Call) and getattr(node.func, "attr", "") in SOURCES
                if is_source and not is_derived(node):
                    bare.append(f"{path}:{node.lineno}")
    assert bare == []


def test_seeds_of_responses_belong_to_the_prompt_and_differ():
    seeds = response_seeds(0, Stream.COLLECT_SEEDS, (), range(50), 4)
    assert len(set(seeds)) == 200
    assert response_seeds(0, Stream.COLLECT_SEEDS, (), [7, 3], 4) == seeds[28:32] + seeds[12:16]
    for other in (
        response_seeds(1, Stream.COLLECT_SEEDS, (), range(50), 4),
        response_seeds(0, Stream.BEST_OF_N_SEEDS, (), range(50), 4),
        response_seeds(0, Stream.COLLECT_SEEDS, (1,), range(50), 4),
    ):
        assert not set(seeds) & set(other)
