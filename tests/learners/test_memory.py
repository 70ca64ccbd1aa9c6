"""What a learner holds on its device, moved away and back: the memory is free, the bits are the same."""

import hashlib

import pytest
import torch

from learners.config import LearnerConfig
from tests.learners import fixtures

CASES = [*((stage, "bfloat16") for stage in (0, 1, 2, 3)), (0, "float32"), (3, "float32")]


def digest(actor):
    """Of all weights, as they are in this rank's learner."""
    found = hashlib.sha256()
    for engine in actor.task.engines.values():
        for name, tensor in engine.named_weights():
            found.update(name.encode())
            found.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def one_iteration(actor, folder, dtype, turns):
    """Digest after two PPO iterations with the average of the weights; between them `turns(actor)`."""
    options = {"dtype": dtype, "ema": 0.5, "epochs": 1, "minibatches": 1}
    options |= {"advantage": "grpo", "responses": 2, "prompts": 6}
    actor.start_ppo(folder / "policy", None, fixtures.ppo_config(**options), None, 0)
    fixtures.ppo_update(actor, 0, fixtures.make_batch(seed=0, responses=2))
    turns(actor)
    fixtures.ppo_update(actor, 1, fixtures.make_batch(seed=1, responses=2))
    averages = [average.double().sum().item() for average in actor.task.ema.averages]
    return digest(actor), averages


def turns_of_all_kinds(actor):
    """Moves everything away and back in the orders that an iteration uses; sizes after each call, and
    what a call meanwhile raises."""
    before = digest(actor)
    seen = [actor.memory()]
    actor.offload("states")
    seen.append(actor.memory())
    assert digest(actor) == before  # a sync reads the weights while the states are away
    errors = []
    with pytest.raises(RuntimeError) as error:
        fixtures.ppo_update(actor, 1, fixtures.make_batch(seed=1, responses=2))
    errors.append(str(error.value))
    actor.offload("all")
    actor.offload("all")
    seen.append(actor.memory())
    with pytest.raises(RuntimeError) as error:
        digest(actor)
    errors.append(str(error.value))
    actor.reload("weights")
    seen.append(actor.memory())
    actor.reload("all")
    actor.reload("states")
    seen.append(actor.memory())
    actor.task.reported = seen, errors


def every_stage(actor, folder):
    """For each stage and precision: results without turns and with them, and what was seen."""
    results = {}
    for stage, dtype in CASES:
        actor.config = actor.config.model_copy(update={"zero_stage": stage})
        plain = one_iteration(actor, folder, dtype, lambda _: None)
        moved = one_iteration(actor, folder, dtype, turns_of_all_kinds)
        results[stage, dtype] = plain, moved, *actor.task.reported
    return results


@pytest.fixture(scope="module")
def results(folder):
    learner = LearnerConfig(ranks=2, zero_stage=2, micro_batch_tokens=512)
    return fixtures.run_ranks(every_stage, folder, learner)


@pytest.mark.parametrize(("stage", "dtype"), CASES)
def test_a_learner_goes_on_as_if_its_memory_had_not_been_moved(results, stage, dtype):
    plain, moved, seen, errors = results[stage, dtype]
    assert plain == moved
    whole, without_states, empty, with_weights, again = seen
    assert whole["states"] > whole["weights"] / 2 > 0
    assert without_states == {"states": 0, "weights": whole["weights"]}
    assert empty == {"states": 0, "weights": 0}
    assert with_weights == without_states
    assert again == whole
    assert errors == [
        "the learner's states are offloaded; reload them first",
        "the learner's weights are offloaded; reload them first",
    ]


def test_without_a_task_there_is_nothing_to_move():
    from actors.learner import LearnerActor

    actor = LearnerActor(0, LearnerConfig(ranks=1), fixtures.MODEL)
    actor.offload("all")
    actor.reload("all")
    assert actor.memory() == {}
