"""A model that a run could not train, sample from or save is refused before anything starts."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPTNeoConfig,
    GraniteConfig,
    LlamaConfig,
    Qwen3Config,
)

from actors.vllm_architectures import can_run, native_architectures
from cluster.config_loader import load_config
from cluster.model_checks import check_models, open_policy
from cluster.model_shape import policy_shape
from common.errors import UserError
from learners.data.tokenizer import train_tokenizer

TOKENIZER = train_tokenizer(["abc abd" * 50], 320)
SIZES = {"vocab_size": len(TOKENIZER), "eos_token_id": TOKENIZER.eos_token_id, "bos_token_id": None}
DECODER = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    **SIZES,
}


def constant(row, response, ended):
    return 0.0


def save(folder, config, auto_class=AutoModelForCausalLM):
    auto_class.from_config(config).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


@pytest.fixture
def llama(tmp_path):
    return save(tmp_path / "llama", LlamaConfig(**DECODER))


def config_for(path, *overrides, context=64):
    return load_config(
        "configs/tiny.yaml",
        [
            "stages=[sft,ppo]",
            f"model={{path: {path}, context: {context}}}",
            "ppo.advantage=grpo",
            "rewards.sources=[{kind: function, path: 'tests.cluster.test_model_checks:constant'}]",
            *overrides,
        ],
    )


def refusal(config):
    with pytest.raises(UserError) as raised:
        check_models(config)
    message = str(raised.value)
    assert "\n" not in message
    return message


def edit_json(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_shape_is_that_of_the_opened_model(llama):
    model = AutoModelForCausalLM.from_pretrained(llama)
    scalar = AutoModelForSequenceClassification.from_pretrained(llama, num_labels=1)
    config = config_for(llama)
    check_models(config)
    shape = policy_shape(config)
    assert shape.architecture == "LlamaForCausalLM"
    assert shape.parameters == model.num_parameters()
    assert shape.scalar_parameters == scalar.num_parameters()
    assert (shape.vocabulary, shape.width, shape.layers, shape.mlp_width) == (len(TOKENIZER), 64, 1, 96)
    assert (shape.tied, shape.positions) == (False, 128)


def test_shape_of_tied_and_learned_positions(tmp_path):
    folder = save(tmp_path / "gpt2", GPT2Config(n_embd=64, n_layer=1, n_head=2, n_positions=32, **SIZES))
    shape = open_policy(str(folder)).shape
    assert shape.parameters == AutoModelForCausalLM.from_pretrained(folder).num_parameters()
    assert (shape.tied, shape.positions, shape.mlp_width) == (True, 32, 256)


def test_missing_folder(tmp_path):
    assert "no such model folder" in refusal(config_for(tmp_path / "nothing"))


def test_adapter_folder(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    TOKENIZER.save_pretrained(tmp_path)
    assert "an adapter and not a whole model; merge it" in refusal(config_for(tmp_path))


def test_missing_weights_and_shards(llama):
    weights = llama / "model.safetensors"
    shutil.move(weights, llama / "other.safetensors")
    assert refusal(config_for(llama)).startswith(f"model.path={llama}: no weights in safetensors files")
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}
    (llama / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "names model-00001-of-00001.safetensors, which is missing" in refusal(config_for(llama))


def test_unknown_tokens_and_missing_template(llama):
    assert "model.end_token=<|nope|>" in refusal(config_for(llama, 'model.end_token="<|nope|>"'))
    assert "model.pad_token=<|nope|>" in refusal(config_for(llama, 'model.pad_token="<|nope|>"'))
    assert "no such file" in refusal(config_for(llama, "model.chat_template=/nowhere.jinja"))


def test_pad_that_is_the_end_token(llama):
    edit_json(llama / "tokenizer_config.json", pad_token="<|end|>")
    message = refusal(config_for(llama))
    assert "pad and end are the same token" in message
    check_models(config_for(llama, 'model.pad_token="<|pad|>"'))


def test_tokenizer_that_is_longer_than_the_embedding(tmp_path):
    small = LlamaConfig(**{**DECODER, "vocab_size": len(TOKENIZER) - 1})
    message = refusal(config_for(save(tmp_path / "small", small)))
    assert str(len(TOKENIZER) - 1) in message
    assert "embedding" in message


def test_context_over_the_positions(tmp_path, llama):
    gpt2 = save(tmp_path / "gpt2", GPT2Config(n_embd=64, n_layer=1, n_head=2, n_positions=32, **SIZES))
    assert "model.context=64 is over the 32 positions" in refusal(config_for(gpt2))
    # vLLM refuses lengths beyond the config for rotary positions too.
    assert "at most 128" in refusal(config_for(llama, context=129))


def test_stretched_rotary_positions(llama):
    edit_json(
        llama / "config.json",
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
    )
    check_models(config_for(llama, context=256))


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes"])
def test_quantised_weights(llama, method):
    edit_json(llama / "config.json", quantization_config={"quant_method": method, "bits": 4})
    assert f"quantised ({method})" in refusal(config_for(llama))


def test_architecture_without_a_scalar_class(tmp_path):
    folder = save(tmp_path / "granite", GraniteConfig(**DECODER))
    check_models(config_for(folder))  # neither a reward model nor a critic
    model_reward = "rewards.sources=[{kind: model}]"
    message = refusal(config_for(folder, "stages=[sft,reward,ppo]", model_reward))
    assert "no sequence-classification model" in message
    assert "the reward stage needs one" in message
    assert "the critic of ppo.advantage=gae needs one" in refusal(config_for(folder, "ppo.advantage=gae"))


def test_architecture_that_vllm_cannot_run(tmp_path):
    config = GPTNeoConfig(
        hidden_size=64, num_layers=1, num_heads=2, attention_types=[[["global"], 1]], **SIZES
    )
    folder = save(tmp_path / "neo", config)
    assert "vLLM cannot run GPTNeoForCausalLM" in refusal(config_for(folder))
    check_models(config_for(folder, "stages=[sft]"))


def test_architectures_are_those_of_the_registry():
    """The tables are read from vLLM's source; this imports it and compares."""
    code = "from vllm import ModelRegistry; print(*ModelRegistry.get_supported_archs())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert native_architectures() <= set(done.stdout.split())
    assert "Qwen3ForCausalLM" in native_architectures()


def test_heads_that_vllm_cannot_split_on_cpu(tmp_path):
    folder = save(tmp_path / "odd", LlamaConfig(**{**DECODER, "num_attention_heads": 4, "head_dim": 24}))
    assert "24 per head" in refusal(config_for(folder))


def test_reward_model_with_two_outputs_or_another_vocabulary(tmp_path, llama):
    pair = LlamaConfig(**DECODER, num_labels=2)
    reward = save(tmp_path / "pair", pair, AutoModelForSequenceClassification)
    with_model = "rewards.sources=[{kind: model}]"
    assert "this one has 2" in refusal(config_for(llama, with_model, f"reward_model.path={reward}"))
    other = LlamaConfig(**{**DECODER, "vocab_size": len(TOKENIZER) + 1}, num_labels=1)
    reward = save(tmp_path / "other", other, AutoModelForSequenceClassification)
    (reward / "tokenizer.json").unlink()
    (reward / "tokenizer_config.json").unlink()
    assert "one tokenizer" in refusal(config_for(llama, with_model, f"reward_model.path={reward}"))


def hub_cache(root: Path, model: Path) -> dict[str, str]:
    """Environment in which `me/tiny` is in the hub's cache, and the hub out of reach."""
    commit = "a" * 40
    repository = root / "hub" / "models--me--tiny"
    shutil.copytree(model, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return {**os.environ, "HF_HOME": str(root), "HF_HUB_OFFLINE": "1"}


def plan(path, environment):
    """`hero plan` in a process of its own: the hub's library reads its variables once, when imported."""
    overrides = ["learners.ranks=1", "stages=[sft,ppo]", f"model={{path: {path}, context: 64}}"]
    overrides += ["ppo.advantage=grpo", "rewards.sources=[{kind: http, url: 'http://127.0.0.1:1/'}]"]
    command = [sys.executable, "-m", "cluster.cli", "plan", "configs/tiny.yaml", *overrides]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_hub_name_in_the_cache_and_not_in_it(tmp_path, llama):
    environment = hub_cache(tmp_path / "hf", llama)
    done = plan("me/tiny", environment)
    assert done.returncode == 0, done.stderr
    assert "LlamaForCausalLM" in done.stdout
    done = plan("me/other", environment)
    assert done.returncode == 2
    assert "model.path=me/other: no such folder, and with HF_HUB_OFFLINE set no such model" in done.stderr


def test_can_run_follows_transformers_for_architectures_without_code_in_vllm():
    from transformers import HeliumForCausalLM, XLNetLMHeadModel

    assert "HeliumForCausalLM" not in native_architectures()
    assert can_run(HeliumForCausalLM)
    assert not can_run(XLNetLMHeadModel)


def test_qwen_shape_of_both_ways_agrees(tmp_path):
    """A model that this project makes has one shape, by arithmetic and opened."""
    sizes = {**DECODER, "intermediate_size": 192, "head_dim": 32, "vocab_size": 320}
    config = Qwen3Config(**sizes, tie_word_embeddings=True)
    opened = open_policy(str(save(tmp_path / "qwen", config))).shape
    made = policy_shape(
        load_config("configs/tiny.yaml", ["model.width=64", "model.vocab_size=320", "model.context=128"])
    )
    assert opened == made
