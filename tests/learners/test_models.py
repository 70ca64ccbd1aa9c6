"""Models of the user's: other architectures, adapters, checkpointed activations, and what of ZeRO
lies on the CPU."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config, LlamaConfig

from common.errors import UserError
from learners.config import LearnerConfig, LoRAConfig, ModelConfig
from learners.data.encoding import encode_demonstrations
from learners.data.records import DemonstrationRecord
from learners.data.sources import DatasetReader, SourceRow
from learners.data.tokenizer import train_tokenizer
from learners.data.tokenizer_loading import load_tokenizer
from learners.models import load_policy, load_scalar, scalar_from_policy, with_adapters
from learners.state_files import StateReader
from tests.learners import fixtures


def learner(ranks=1, stage=0, **options):
    return LearnerConfig(ranks=ranks, zero_stage=stage, micro_batch_tokens=512, dtype="float32", **options)


def largest_difference(a, b):
    assert a.keys() == b.keys()
    return max(float(np.abs(a[n] - b[n]).max() / (np.abs(a[n]).max() + 1e-12)) for n in a)


def both(actor, folder):
    return fixtures.pretrain(actor, folder)[1], fixtures.ppo(actor, folder)[1]


@pytest.fixture(scope="module")
def plain(folder):
    return fixtures.run_ranks(both, folder, learner())


@pytest.mark.parametrize(
    ("ranks", "stage", "options"),
    [
        (1, 2, {"offload_optimizer": True}),
        (2, 3, {"offload_optimizer": True, "offload_parameters": True}),
    ],
)
def test_offloading_to_the_cpu_gives_the_same_update(folder, plain, ranks, stage, options):
    offloaded = fixtures.run_ranks(both, folder, learner(ranks, stage, **options))
    for a, b in zip(plain, offloaded, strict=True):
        assert largest_difference(a, b) < 5e-6


def counted(actor, folder):
    """Updates, and how often the first layer ran in one training step."""
    updates = both(actor, folder)
    layer = actor.task.engine.module.model.base_model.layers[0].mlp
    runs = []
    layer.register_forward_pre_hook(lambda *_: runs.append(1))
    fixtures.ppo_update(actor, 2, fixtures.make_batch(seed=5))
    return updates, len(runs)


def test_gradient_checkpointing_runs_layers_twice_only(folder, plain):
    _, once = fixtures.run_ranks(counted, folder, learner())
    checkpointed = fixtures.MODEL.model_copy(update={"gradient_checkpointing": True})
    updates, runs = fixtures.run_ranks(counted, folder, learner(2, 2), model=checkpointed)
    assert runs > once
    for a, b in zip(plain, updates, strict=True):
        assert largest_difference(a, b) < 5e-6


def buffers_in_bfloat16(actor, folder):
    """Buffers of the policy's engine, and log-probabilities by the learner and by the exported folder."""
    fixtures.ppo(actor, folder, iterations=0, dtype="bfloat16")
    actor.export(folder / "bfloat16")
    sequence = np.arange(8, 68) % 300
    model = actor.task.engine.module.model
    return {name: buffer.clone().numpy() for name, buffer in model.named_buffers()}, actor.probe_logprobs(
        [sequence]
    )


def test_rotary_frequencies_stay_float32_in_bfloat16_training(folder):
    config = learner(2, 2).model_copy(update={"dtype": "bfloat16"})
    buffers, (logprobs,) = fixtures.run_ranks(buffers_in_bfloat16, folder, config)
    loaded = load_policy(folder / "bfloat16", "bfloat16")
    expected = dict(loaded.named_buffers())
    assert buffers.keys() == expected.keys()
    assert all(np.array_equal(buffers[name], buffer.numpy()) for name, buffer in expected.items())
    tokens = torch.from_numpy(np.arange(8, 68) % 300)[None]
    with torch.no_grad():
        log_p = loaded(tokens).logits[0, :-1].float().log_softmax(-1)
    assert np.abs(log_p.gather(1, tokens[0, 1:, None]).squeeze(1).numpy() - logprobs).max() < 0.02


def lora(folder, **options):
    return ModelConfig(path=str(folder / "policy"), context=64, lora=LoRAConfig(rank=4, alpha=8, **options))


def adapted(actor, folder):
    """PPO with adapters in policy and critic; merged weights, a restored state, and the exported
    folder's size of state."""
    scratch = folder / f"lora-{actor.config.ranks}"
    _, before = fixtures.ppo(actor, folder, iterations=0)
    fixtures.ppo(actor, folder, iterations=1)
    actor.save(scratch, "state")
    part = fixtures.make_batch(seed=1)
    fixtures.ppo_update(actor, 1, part)
    after = fixtures.weights(actor)
    fixtures.ppo(actor, folder, iterations=0)
    actor.load(scratch, "state")
    fixtures.ppo_update(actor, 1, part)
    actor.export(scratch / "model")
    return before, after, fixtures.weights(actor), actor.probe_logprobs([np.arange(8, 40)])[0]


@pytest.fixture(scope="module")
def trained_adapters(folder):
    return fixtures.run_ranks(adapted, folder, learner(), model=lora(folder))


def test_lora_changes_linear_layers_and_the_scalar_head_alone(folder, trained_adapters):
    before, after, resumed, _ = trained_adapters
    start = dict(load_policy(folder / "policy").named_parameters())
    assert {n.removeprefix("policy.") for n in before if n.startswith("policy.")} == start.keys()
    assert all(np.array_equal(before[f"policy.{n}"], p.detach().numpy()) for n, p in start.items())
    moved = {n for n in after if not np.array_equal(before[n], after[n])}
    linear = {n for n in after if n.endswith(("_proj.weight", "score.weight"))}
    assert moved == linear
    assert largest_difference(after, resumed) < 1e-6


def test_the_exported_folder_is_the_plain_merged_model(folder, trained_adapters):
    exported = load_policy(folder / "lora-1" / "model")
    assert not any("lora" in n for n, _ in exported.named_parameters())
    tokens = torch.arange(8, 40)[None]
    with torch.no_grad():
        logprobs = exported(tokens).logits[0, :-1].log_softmax(-1).gather(1, tokens[0, 1:, None]).squeeze(1)
    assert np.abs(logprobs.numpy() - trained_adapters[3]).max() < 1e-5


def test_the_learner_state_holds_adapters_and_no_base_weights(folder, trained_adapters):
    names = StateReader(folder / "lora-1" / "policy" / "state").pieces.keys()
    assert all("lora_" in name for name in names)
    assert len(names) == 2 * 2 * 7  # two matrices for each of seven linear layers of two blocks


def test_adapters_train_the_same_on_two_ranks_with_zero_3(folder, trained_adapters):
    _, after, resumed, _ = fixtures.run_ranks(adapted, folder, learner(2, 3), model=lora(folder))
    assert largest_difference(trained_adapters[1], after) < 5e-6
    assert largest_difference(after, resumed) < 1e-6


def test_adapters_of_the_last_layers_alone(folder):
    """The layers before have none, and no gradient reaches them."""
    model = with_adapters(load_policy(folder / "policy"), lora(folder, last_layers=1), seed=0)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 7
    assert all(".layers.1." in name for name in trained)
    hidden = []
    model.model.layers[1].register_forward_pre_hook(lambda module, inputs: hidden.append(inputs[0]))
    model(torch.arange(8, 40)[None])
    assert not hidden[0].requires_grad


def test_adapters_on_layers_that_are_not_there_are_refused(folder):
    with pytest.raises(UserError, match=r"model.lora.targets=\['no_proj'\]"):
        with_adapters(load_policy(folder / "policy"), lora(folder, targets=["no_proj"]), seed=0)


SIZES = {"vocab_size": 320, "max_position_embeddings": 64}
ARCHITECTURES = {
    "llama": LlamaConfig(
        **SIZES,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=False,
        pad_token_id=0,
    ),
    "gpt2": GPT2Config(
        **SIZES, n_embd=64, n_layer=1, n_head=2, pad_token_id=0, bos_token_id=None, eos_token_id=5
    ),
}


def fine_tuned(actor, folder, name):
    config = fixtures.sft_config()
    steps = actor.start_sft(folder / name, config, folder, 0)
    losses = [m["loss/train"] for m in actor.train(steps)]
    actor.export(folder / f"{name}-sft")
    actor.start_ppo(folder / f"{name}-sft", folder / f"{name}-reward", fixtures.ppo_config(), None, 0)
    return losses, fixtures.ppo_update(actor, 0, fixtures.make_batch())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_architectures_go_through_sft_and_ppo(folder, name):
    tokenizer = train_tokenizer(fixtures.TEXTS, 320)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(ARCHITECTURES[name]).save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)
    scalar = ARCHITECTURES[name].__class__(**{**ARCHITECTURES[name].to_dict(), "num_labels": 1})
    AutoModelForSequenceClassification.from_config(scalar).save_pretrained(folder / f"{name}-reward")
    rows = [DemonstrationRecord.parse({"prompt": f"n{i}?", "response": f"It is {i}."}) for i in range(24)]
    located = [SourceRow("here", row) for row in rows]
    reader = DatasetReader("demonstrations", fixtures.DATA, 0)
    encode_demonstrations(located, load_tokenizer(folder / name), 64, reader).save(
        folder / "demonstrations.npz"
    )
    model = ModelConfig(path=str(folder / name), context=64, attention="eager")
    losses, metrics = fixtures.run_ranks(fine_tuned, folder, learner(2, 2), name, model=model)
    assert losses[-1] < 0.8 * losses[0]
    assert metrics["val/first_ratio_error"] < 1e-5


def test_the_config_adds_missing_chat_template_and_tokens(folder, tmp_path):
    bare = train_tokenizer(fixtures.TEXTS, 320)
    bare.chat_template = bare.pad_token = None
    bare.save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError, match=r"set model.chat_template to a Jinja file"):
        load_tokenizer(tmp_path / "bare")
    (tmp_path / "chat.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    config = ModelConfig(
        path=str(tmp_path / "bare"), chat_template=str(tmp_path / "chat.jinja"), pad_token="<|endoftext|>"
    )
    tokenizer = load_tokenizer(tmp_path / "bare", config)
    assert tokenizer.pad_token_id == tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "x"
    with pytest.raises(UserError, match=r"model.end_token=<nope>: the tokenizer of .* has no such token"):
        load_tokenizer(tmp_path / "bare", config.model_copy(update={"end_token": "<nope>"}))


def test_a_scalar_model_of_several_outputs_is_refused(folder, tmp_path):
    model = scalar_from_policy(folder / "policy", seed=0)
    model.config.num_labels = 2
    model.score = torch.nn.Linear(64, 2, bias=False)
    model.save_pretrained(tmp_path / "two")
    with pytest.raises(UserError, match="a reward model has one output, this one has 2"):
        load_scalar(tmp_path / "two")
