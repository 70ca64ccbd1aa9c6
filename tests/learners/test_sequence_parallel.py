"""Ranks that share the rows of a forward pass learn what one rank with whole rows learns."""

import math

import numpy as np
import pytest

from common.errors import UserError
from learners.config import LearnerConfig, LoRAConfig
from learners.data.datasets import TokenData
from learners.data.samples import offsets_of
from tests.learners import fixtures
from tests.runs import metrics as logged
from tests.runs import start, wait_until_finished

CONFIG = LearnerConfig(ranks=1, zero_stage=0, dtype="float32", micro_batch_tokens=256)
TWO = CONFIG.model_copy(update={"ranks": 2, "sequence_parallel": 2})
FOUR = CONFIG.model_copy(update={"ranks": 4, "sequence_parallel": 2})
PPO = {"minibatches": 2, "epochs": 1, "ptx_coef": 0.5, "ptx_tokens": 64, "ema": 0.5}
GRPO = {"responses": 2, "prompts": 6, "aggregation": "seq_mean_token_mean", "ratio": "sequence"}
ALL = ("sft", "reward", "ppo", "grpo")
# ZeRO stage, packing, gradient checkpointing
PLAIN, ZERO_1 = (0, False, False), (1, False, False)
SLICED = [ZERO_1, (0, True, True), (3, True, False)]


def make_demonstrations(folder) -> None:
    """Sequences of 5 to 40 tokens, of which the second half is in the loss."""
    rng = np.random.default_rng(3)
    lengths = rng.integers(5, 41, 20)
    offsets = offsets_of(lengths)
    position_N = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    TokenData(
        tokens_N=rng.integers(8, 300, offsets[-1]).astype(np.int32),
        offsets=offsets,
        loss_mask_N=position_N >= np.repeat(lengths // 2, lengths),
        is_validation_S=np.arange(20) < 4,
    ).save(folder / "demonstrations.npz")


class Record:
    """What a variant has computed, by name."""

    def __init__(self, actor, zero):
        self.actor, self.zero = actor, zero
        self.numbers, self.gradients, self.weights = {}, {}, {}

    def gradients_of(self, task) -> None:
        """Of each further step of the task's models: whole, as optimizers get them under ZeRO 0."""
        if self.zero:
            return
        for model, engine in self.actor.task.engines.items():

            def step(engine=engine, model=model, inner=engine.step):
                for name, parameter in engine.module.named_parameters():
                    key = f"{task}, step {engine.steps}: {model}.{name}"
                    self.gradients[key] = parameter.grad.numpy().copy()
                return inner()

            engine.step = step

    def note(self, task, metrics) -> None:
        self.numbers |= {f"{task}: {key}": value for key, value in metrics.items()}
        self.weights |= {f"{task}: {key}": value for key, value in fixtures.weights(self.actor).items()}


def train_supervised(actor, folder, task, record):
    if task == "sft":
        actor.start_sft(folder / "policy", fixtures.sft_config(), folder, 0)
    else:
        actor.start_reward_model(folder / "policy", fixtures.reward_config(), folder, 0)
    record.gradients_of(task)
    for number, metrics in enumerate([*actor.train(2), actor.validate()]):
        record.note(f"{task} {number}", metrics)


def train_ppo(actor, folder, task, record):
    changes, reward = PPO, folder / "reward"
    if task == "grpo":
        changes, reward = {"advantage": "grpo", "kl_in": "loss", **PPO, **GRPO}, None
    config = fixtures.ppo_config(**changes)
    actor.start_ppo(folder / "policy", reward, config, folder / "tokens.npz", 0)
    record.gradients_of(task)
    part = fixtures.make_batch(responses=config.responses)
    metrics = fixtures.ppo_update(actor, 0, part)
    record.note(task, metrics | {"pretrain_loss": actor.pretrain_loss()})
    probes = actor.probe_logprobs([part.samples.sequence(b) for b in range(3)])
    record.weights[f"{task}: probes"] = np.concatenate(probes)


def learn(actor, folder, variants, tasks):
    """(metrics, gradients, weights) of the tasks, by variant."""
    results = {}
    for zero, packing, checkpointing in variants:
        actor.config = actor.config.model_copy(update={"zero_stage": zero, "packing": packing})
        actor.model = actor.model.model_copy(update={"gradient_checkpointing": checkpointing})
        record = Record(actor, zero)
        for task in tasks:
            train = train_ppo if "po" in task else train_supervised
            train(actor, folder, task, record)
        results[zero, packing, checkpointing] = record.numbers, record.gradients, record.weights
    return results


def assert_equal(found, expected) -> None:
    """To 1e-5 of each metric and of the largest entry of each tensor."""
    for name, value in expected[0].items():
        # Other rows are padded otherwise. Without ZeRO DeepSpeed gives no norm of gradients in float32.
        if not name.endswith(("batch/padding", "first_ratio_error")) and not math.isnan(value):
            assert found[0][name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
    for of_found, of_expected in zip(found[1:], expected[1:], strict=True):
        assert of_found.keys() == of_expected.keys()
        for name, value in of_expected.items():
            assert np.abs(of_found[name] - value).max() <= 1e-5 * (np.abs(value).max() + 1e-6), name


@pytest.fixture(scope="module")
def inputs(folder):
    make_demonstrations(folder)
    return folder


def test_two_ranks_that_share_rows_do_the_sft_and_ppo_steps_of_one_rank(inputs):
    tasks = ("sft", "ppo")
    whole = fixtures.run_ranks(learn, inputs, CONFIG, [PLAIN], tasks)[PLAIN]
    sliced = fixtures.run_ranks(learn, inputs, TWO, [PLAIN], tasks)[PLAIN]
    assert whole[1]
    assert_equal(sliced, whole)
    head = "model.model.embed_tokens.weight"
    learned = np.abs(whole[2][f"sft 0: {head}"] - whole[2]["ppo: policy.model.embed_tokens.weight"])
    assert learned.max() > 1e-4  # the measure would see another update


@pytest.mark.slow
def test_every_task_packed_checkpointed_and_under_zero_does_the_same(inputs):
    whole = fixtures.run_ranks(learn, inputs, CONFIG, [PLAIN, ZERO_1], ALL)
    two = fixtures.run_ranks(learn, inputs, TWO, SLICED, ALL)
    for variant in SLICED:
        assert_equal(two[variant], whole[ZERO_1 if variant[0] else PLAIN])
    # Two groups of two ranks: each group has other sequences.
    four = fixtures.run_ranks(learn, inputs, FOUR, [(2, True, False)], ALL)
    assert_equal(four[2, True, False], whole[ZERO_1])


@pytest.mark.slow
def test_adapters_learn_the_same(inputs):
    model = fixtures.MODEL.model_copy(update={"lora": LoRAConfig(rank=4)})
    whole = fixtures.run_ranks(learn, inputs, CONFIG, [ZERO_1], ("sft",), model=model)
    sliced = fixtures.run_ranks(learn, inputs, TWO, [ZERO_1], ("sft",), model=model)
    assert_equal(sliced[ZERO_1], whole[ZERO_1])


def refusals(actor, folder):
    """What tasks say to models that cannot share rows."""
    messages = []
    for change in ({"attention": "eager"}, {"attention": "sdpa"}):
        actor.model = actor.model.model_copy(update=change)
        with pytest.raises(UserError) as error:
            actor.start_sft(folder / "windows", fixtures.sft_config(), folder, 0)
        messages.append(str(error.value))
    return messages


@pytest.mark.slow
def test_models_that_need_whole_rows_are_refused(inputs):
    from transformers import MistralConfig
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM

    from learners.data.tokenizer_loading import load_tokenizer

    sizes = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 8}
    model = AutoModelForCausalLM.from_config(MistralConfig(**sizes, **heads, pad_token_id=0))
    model.save_pretrained(inputs / "windows")
    load_tokenizer(inputs / "policy").save_pretrained(inputs / "windows")
    eager, windows = fixtures.run_ranks(refusals, inputs, TWO)
    assert "learners.sequence_parallel=2: MistralForCausalLM has the attention eager; set model.att" in eager
    assert "windows of attention, which sdpa cannot keep" in windows


@pytest.mark.slow
def test_a_run_shares_rows_in_every_stage(tmp_path):
    """From the corpus to PPO, where engines check the learners' log-probabilities."""
    root = tmp_path / "run"
    process = start(root, "learners.sequence_parallel=2", "ppo.iterations=2", "--until", "ppo")
    wait_until_finished(process, root)
    assert [row["step"] for row in logged(root, "ppo")] == [1, 2]
    assert all(row["sync/mean_error"] < 1e-5 for row in logged(root, "ppo"))
    sft = [row for row in logged(root, "sft") if "loss/train" in row]
    # Two epochs of 380 demonstrations in batches of 32.
    assert [row["step"] for row in sft] == list(range(1, 23))
    assert sft[-1]["loss/train"] < sft[0]["loss/train"]
