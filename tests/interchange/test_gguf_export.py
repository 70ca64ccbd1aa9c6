"""`hero export --gguf`: what is written reads back as the same model, by the reader of another program."""

import json

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.interchange.gguf_writing import write_gguf
from cluster.interchange.importing import import_model
from common.errors import UserError
from learners.data.tokenizer_loading import load_tokenizer
from learners.models import load_policy
from tests.interchange.gguf_models import write_gguf as write_tiny
from tests.learners.fixtures import make_files


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A tiny Llama with rotated halves to get right."""
    folder = tmp_path_factory.mktemp("llama")
    import_model(str(write_tiny(folder / "tiny.gguf")), folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """What the pretrain stage makes: a Qwen3 model with a tokenizer of its own."""
    folder = tmp_path_factory.mktemp("qwen")
    make_files(folder)
    return folder / "policy"


def greedy(folder, prompt):
    tokenizer, model = load_tokenizer(folder), load_policy(folder)
    tokens = tokenizer(prompt, return_tensors="pt")["input_ids"]
    answer = model.generate(tokens, do_sample=False, max_new_tokens=12, min_new_tokens=12)
    return tokens.tolist(), answer.tolist()


@pytest.mark.parametrize("name", ["llama", "qwen"])
def test_the_round_trip_gives_the_same_weights_and_greedy_answers(name, request, tmp_path):
    folder = request.getfixturevalue(name)
    write_gguf(folder, tmp_path / "out.gguf")
    import_model(str(tmp_path / "out.gguf"), tmp_path / "back")
    before, after = load_policy(folder).state_dict(), load_policy(tmp_path / "back").state_dict()
    assert before.keys() == after.keys()
    for tensor in before:
        assert torch.equal(before[tensor], after[tensor]), tensor
    for prompt in ("The capital of Peru", "hello  12\n é"):
        assert greedy(folder, prompt) == greedy(tmp_path / "back", prompt)


def test_the_file_says_what_llama_cpp_asks_for(qwen, tmp_path):
    write_gguf(qwen, tmp_path / "out.gguf", "q8_0", "quickstart", "apache-2.0")
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tokenizer = load_tokenizer(qwen)
    assert fields["general.architecture"] == "qwen3"
    assert (fields["general.name"], fields["general.license"]) == ("quickstart", "apache-2.0")
    assert fields["tokenizer.ggml.pre"] == "smollm"
    assert fields["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert "generation %" not in fields["tokenizer.chat_template"]
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.0.ffn_up.weight"] == "Q8_0"
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    # Rounded, and still the same model.
    rounded = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="out.gguf", dtype=torch.float32, config=load_policy(qwen).config
    )
    tokens = torch.tensor([[10, 20, 30]])
    with torch.no_grad():
        difference = rounded(tokens).logits - load_policy(qwen)(tokens).logits
    assert 0 < difference.abs().max() < 0.1


def test_what_has_no_place_in_a_file_is_refused(llama, tmp_path):
    with pytest.raises(UserError, match="--precision q2: expected one of f32"):
        write_gguf(llama, tmp_path / "out.gguf", "q2")
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in llama.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    config = json.loads((copy / "config.json").read_text())

    def refused(**changes):
        (copy / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(UserError) as error:
            write_gguf(copy, tmp_path / "out.gguf")
        assert not list(tmp_path.glob("out.gguf*"))
        return str(error.value)

    assert "GPT2LMHeadModel is not written as GGUF" in refused(architectures=["GPT2LMHeadModel"])
    yarn = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    assert "its positions (linear)" in refused(rope_parameters=yarn)
    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.backend_tokenizer.pre_tokenizer = None
    tokenizer.save_pretrained(copy)
    assert "no name for how its tokenizer cuts texts" in refused()
