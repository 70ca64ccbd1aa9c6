"""A model written from a stream of its weights is the one that transformers writes, in files of a limited
size."""

import json
import weakref

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from learners.config import LearnerConfig, LoRAConfig
from learners.model_files import _Shards, write_model
from tests.learners import fixtures

SIZES = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "intermediate_size": 48, "pad_token_id": 0, "max_position_embeddings": 64}


def build(name, auto_class=AutoModelForCausalLM, **options):
    torch.manual_seed(0)
    return auto_class.from_config(AutoConfig.for_model(name, **SIZES, **options)).eval()


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Tied and untied heads, and experts that the files hold one by one.
@pytest.mark.parametrize("name", ["qwen3", "llama", "gpt2", "opt", "mixtral", "phi3"])
@pytest.mark.parametrize("auto_class", [AutoModelForCausalLM, AutoModelForSequenceClassification])
def test_a_small_model_has_the_bytes_of_save_pretrained(tmp_path, name, auto_class):
    model = build(name, auto_class, **({"num_labels": 1} if "Sequence" in auto_class.__name__ else {}))
    model.save_pretrained(tmp_path / "theirs")
    # As a run has it, whose models come from files.
    for number, source in enumerate((model, auto_class.from_pretrained(tmp_path / "theirs"))):
        (tmp_path / f"ours-{number}").mkdir()
        write_model(source, source.named_parameters(), tmp_path / f"ours-{number}")
        assert files(tmp_path / f"ours-{number}") == files(tmp_path / "theirs")


def stream(model, alive):
    """Weights that exist only as long as somebody holds them; `alive` takes the most bytes at once."""
    held = []
    for name, parameter in model.named_parameters():
        copy = parameter.detach().clone()
        held.append((weakref.ref(copy), copy.nbytes))
        alive[0] = max(alive[0], sum(size for reference, size in held if reference() is not None))
        yield name, copy
        del copy


def test_a_large_model_is_written_shard_by_shard(tmp_path):
    model = build("qwen3", tie_word_embeddings=False, head_dim=8)
    total = sum(p.nbytes for p in model.parameters())
    limit, most, held = 20_000, [0], []
    model.save_pretrained(tmp_path, state_dict={})
    shards = _Shards(tmp_path, limit)
    for name, weight in stream(model, most):
        shards.add(name, weight)
        held.append(sum(tensor.nbytes for tensor in shards.held.values()))
    shards.finish()
    largest = max(p.nbytes for p in model.parameters())
    assert max(held) <= limit < total / 3
    assert most[0] <= 2 * largest  # the one that is copied, and the next one
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_parameters": model.num_parameters(), "total_size": total}
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == names
    assert names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    assert all((tmp_path / name).stat().st_size <= limit + 2000 for name in names)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


def export_sharded(actor, folder):
    """Exports of ZeRO-3 with and without adapters, and the same model of one rank's memory."""
    expected = {}
    for name, lora in (("plain", None), ("adapters", LoRAConfig(rank=2))):
        actor.model = actor.model.model_copy(update={"lora": lora})
        actor.start_sft(folder / "policy", fixtures.sft_config(), folder, 0)
        # A buffer that is no function of the config, as those of batch norms.
        norm = actor.task.engine.module.model.model.norm
        norm.register_buffer("seen", torch.tensor([3.0, 4.0]))
        actor.train(1)
        actor.export(folder / name)
        expected[name] = {n: w.clone() for n, w in actor.task.engine.named_weights()}
    return {name: {n: w.numpy() for n, w in of_one.items()} for name, of_one in expected.items()}


def test_shards_of_all_ranks_become_one_model(folder):
    learner = LearnerConfig(ranks=2, zero_stage=3, init="sharded", dtype="float32", micro_batch_tokens=512)
    # The corpus in the place of demonstrations.
    (folder / "demonstrations.npz").write_bytes((folder / "tokens.npz").read_bytes())
    expected = fixtures.run_ranks(export_sharded, folder, learner)
    for name, weights in expected.items():
        stored = fixtures.load(folder / name)
        assert stored.pop("model.norm.seen").tolist() == [3.0, 4.0]
        assert stored.keys() == weights.keys()
        assert all((stored[n].numpy() == weights[n]).all() for n in weights)
        assert AutoModelForCausalLM.from_pretrained(folder / name).config.tie_word_embeddings
