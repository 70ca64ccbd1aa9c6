"""A learner's state is the same on any number of ranks and under any ZeRO stage: written by one, read by
two, and by one again."""

import numpy as np
import pytest
import torch

from common.errors import UserError
from learners.config import LearnerConfig
from learners.state_files import StateReader
from tests.learners import fixtures

# For each journey: precision, and the ZeRO stage on one rank, on two ranks, on one again.
JOURNEYS = {"plain": ("float32", 0, 2, 0), "sharded": ("float32", 3, 3, 2), "rounded": ("bfloat16", 0, 1, 3)}
ENGINES = ("policy", "critic", "ema")


def stop(actor, folder, leg):
    """One leg: each journey's task is started, goes on from where the leg before left it, and is saved.
    Returns what one more iteration makes of each."""
    results = {}
    for journey, (dtype, *stages) in JOURNEYS.items():
        actor.config = actor.config.model_copy(update={"zero_stage": stages[leg]})
        options = {"dtype": dtype, "ema": 0.5, "epochs": 1, "minibatches": 2}
        actor.start_ppo(folder / "policy", folder / "reward", fixtures.ppo_config(**options), None, 0)
        if leg:
            assert actor.load(folder / journey / str(leg - 1), "state") == 2
        else:
            fixtures.ppo_update(actor, 0, fixtures.make_batch(seed=0))
        loaded = fixtures.weights(actor)
        actor.save(folder / journey / str(leg), "state")
        fixtures.ppo_update(actor, 1, fixtures.make_batch(seed=1))
        results[journey] = loaded, fixtures.weights(actor)
    return results


@pytest.fixture(scope="module")
def legs(folder):
    results = []
    for leg, ranks in enumerate((1, 2, 1)):
        learner = LearnerConfig(ranks=ranks, micro_batch_tokens=512)
        results.append(fixtures.run_ranks(stop, folder, learner, leg))
    return results


def whole_state(folder):
    """The tensors of all parameters, put together from all ranks' files, and the scalars."""
    state = {}
    for engine in ENGINES:
        name_of_folder = "ema-state" if engine == "ema" else f"{engine}/state"
        reader = StateReader(folder / name_of_folder)
        for name, pieces in reader.pieces.items():
            keys = sorted(pieces[0]["tensors"])
            for key in keys:
                parts = sorted(
                    (piece["start"], piece["tensors"][key])
                    for piece in pieces
                    if piece["tensors"][key].numel()
                )
                assert [start for start, _ in parts] == list(np.cumsum([0] + [len(t) for _, t in parts])[:-1])
                state[engine, name, key] = torch.cat([tensor for _, tensor in parts])
            state[engine, name, "scalars"] = pieces[0]["scalars"]
    return state


@pytest.mark.parametrize("journey", JOURNEYS)
def test_every_rank_and_stage_holds_the_same_state(folder, legs, journey):
    first, second, third = (whole_state(folder / journey / str(leg)) for leg in range(3))
    assert {key for _, _, key in first} == {"master", "exp_avg", "exp_avg_sq", "scalars"}
    assert first.keys() == second.keys() == third.keys()
    for key, value in first.items():
        if key[2] == "scalars":
            assert value == second[key] == third[key]
            # DeepSpeed's optimizer of bfloat16 without ZeRO begins with a step of its own.
            steps = 3.0 if journey == "rounded" else 2.0
            assert value == ({} if key[0] == "ema" else {"step": steps})
        else:
            assert torch.equal(value, second[key]), key
            assert torch.equal(value, third[key]), key
    assert any(value.abs().max() > 0 for key, value in first.items() if key[2] == "exp_avg")


@pytest.mark.parametrize("journey", JOURNEYS)
def test_training_goes_on_where_it_was(legs, journey):
    (loaded, trained), *others = (leg[journey] for leg in legs)
    moved = max(np.abs(trained[name] - loaded[name]).max() for name in loaded)
    assert moved > 1e-4
    # Sums over ranks round otherwise.
    tolerance = 2e-6 if JOURNEYS[journey][0] == "float32" else moved
    for other_loaded, other_trained in others:
        assert all(np.array_equal(loaded[name], other_loaded[name]) for name in loaded)
        assert all(np.abs(trained[n] - other_trained[n]).max() <= tolerance for n in loaded)


def test_files_of_other_ranks_that_are_missing_are_named(folder, legs, tmp_path):
    with pytest.raises(UserError, match="no learner state of this version"):
        StateReader(tmp_path)
    source = folder / "sharded" / "1" / "policy" / "state" / "rank-00001.pt"
    (tmp_path / source.name).write_bytes(source.read_bytes())
    with pytest.raises(UserError, match="1 of 2 files of a learner state are here"):
        StateReader(tmp_path)
