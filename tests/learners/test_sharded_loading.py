"""Models that are cut on arrival have the bits of those that every rank loads whole."""

import pickle

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from common.errors import UserError
from learners.config import LearnerConfig, LoRAConfig
from learners.sharded_loading import _without_weights, load
from learners.sharded_parameters import is_sharded
from tests.learners import fixtures

THREE = LearnerConfig(ranks=2, zero_stage=3, micro_batch_tokens=512, init="full", dtype="float32")
KINDS = ("ppo float32", "ppo bfloat16", "pretrain", "lora")


def started(actor, folder, kind):
    """Starts a task of this kind; trains it by a call of what is returned."""
    if kind == "pretrain":
        config = fixtures.PretrainConfig(
            steps=8, batch_tokens=160, sequence_length=16, optimizer=fixtures.optimizer()
        )
        actor.start_pretrain(config, folder, 0)
        return lambda: actor.train(2)
    if kind == "lora":
        actor.model = actor.model.model_copy(
            update={"lora": LoRAConfig(rank=4), "gradient_checkpointing": True}
        )
        actor.start_reward_model(folder / "policy", fixtures.reward_config(), folder, 0)
        return lambda: actor.train(2)
    # The critic starts from the policy, with a new head.
    options = {"dtype": kind.split()[1], "epochs": 1, "minibatches": 2}
    actor.start_ppo(folder / "policy", None, fixtures.ppo_config(**options), None, 0)
    return lambda: fixtures.ppo_update(actor, 0, fixtures.make_batch())


def both_ways(actor, folder):
    """(weights as loaded, after training, number of parameters, dtypes) of each kind and way."""
    results = {}
    plain = actor.model
    for kind in KINDS:
        for init in ("full", "sharded"):
            actor.config, actor.model = actor.config.model_copy(update={"init": init}), plain
            train = started(actor, folder, kind)
            counts = [engine.num_parameters for engine in actor.task.engines.values()]
            loaded = fixtures.weights(actor)
            train()
            results[kind, init] = loaded, fixtures.weights(actor), counts
    with pytest.raises(UserError, match="no such model folder"):
        actor.start_ppo(folder / "policy", folder / "missing", fixtures.ppo_config(), None, 0)
    results["largest"] = sizes_while_loading(actor, folder)
    return results


def sizes_while_loading(actor, folder):
    """On every rank: (bytes of the parameters of a sharded model, of the whole model)."""
    actor.config = actor.config.model_copy(update={"init": "sharded"})
    made = []

    def make():
        made.append(AutoModelForCausalLM.from_pretrained(folder / "policy"))
        return made[0]

    model = load(make, actor.config, "float32")
    assert is_sharded(model.parameters())
    assert len(made) == (actor.rank == 0)  # only rank 0 reads
    held = sum(parameter.data.nbytes for parameter in model.parameters())
    shards = sum(parameter.ds_tensor.nbytes for parameter in model.parameters())
    return held, shards, sum(parameter.ds_numel for parameter in model.parameters()) * 4


@pytest.fixture(scope="module")
def results(folder):
    return fixtures.run_ranks(both_ways, folder, THREE)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_the_same_bits_as_loaded_whole(results, kind):
    (loaded, trained, counts), (loaded_sharded, trained_sharded, counts_sharded) = (
        results[kind, init] for init in ("full", "sharded")
    )
    assert counts == counts_sharded
    assert list(loaded) == list(loaded_sharded)
    for name in loaded:
        assert np.array_equal(loaded[name], loaded_sharded[name]), name
        assert np.array_equal(trained[name], trained_sharded[name]), name
    assert any(not np.array_equal(loaded[name], trained[name]) for name in loaded)


def test_a_rank_keeps_its_shard_alone(results):
    held, shards, whole = results["largest"]
    assert held == 0
    assert whole / 2 <= shards < whole / 2 * 1.05


SIZES = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gemma3_text", "gpt2", "opt", "mistral", "phi3"])
def test_a_model_of_any_architecture_can_be_sent_without_its_weights(name):
    sizes = SIZES | {"num_key_value_heads": 2, "intermediate_size": 48, "pad_token_id": 0}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **sizes)).eval()
    weights = {n: p.clone() for n, p in model.named_parameters()}
    pickled, shapes = _without_weights(model)
    assert len(pickled) < sum(weight.nbytes for weight in weights.values()) + 200_000
    assert all(torch.equal(weights[n], p) for n, p in model.named_parameters())
    received = pickle.loads(pickled)
    for parameter, (shape, _), weight in zip(received.parameters(), shapes, weights.values(), strict=True):
        assert (parameter.numel(), shape) == (0, weight.shape)
        parameter.data = weight
    tokens = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        assert torch.equal(received(tokens).logits, model(tokens).logits)
    assert received.config.to_dict() == model.config.to_dict()


def test_a_model_that_cannot_be_sent_is_refused_by_name():
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **SIZES))
    model.own_function = lambda: None
    with pytest.raises(UserError, match=r"GPT2LMHeadModel: .* learners\.init=full"):
        _without_weights(model)
