"""Which template, end token and pad token a run takes: the tokenizer's, the template's or the config's."""

import ast
from itertools import count
from pathlib import Path

import pytest

from common.errors import UserError
from learners.config import ModelConfig
from learners.data.chat_template import tell_once
from learners.data.tokenizer import end_token
from learners.data.tokenizer_loading import load_tokenizer
from learners.data.turn_tokens import encode_conversation, encode_response
from tests.learners.fixtures import talk
from tests.learners.tokenizers_of_models import CHATML, HELLO, MARKED, chatml, learned


@pytest.fixture
def saved(tmp_path):
    """Saves a tokenizer and gives a function that loads it with settings of the config."""

    folders = (tmp_path / str(number) for number in count())

    def save(tokenizer):
        folder = next(folders)
        tokenizer.save_pretrained(folder)
        return lambda **settings: load_tokenizer(folder, ModelConfig(path=str(folder), **settings))

    tell_once.cache_clear()
    return save


def test_the_template_decides_which_token_ends_a_turn_and_says_so_once(saved, caplog):
    load = saved(chatml(end="<|endoftext|>"))
    tokenizer = load()
    load()
    assert tokenizer.eos_token == "<|im_end|>"
    assert len(caplog.records) == 1
    assert caplog.messages[0].endswith(
        "the template ends a turn with <|im_end|>, which is used as end token instead of the tokenizer's "
        "<|endoftext|>"
    )
    # Whatever is learned, ranked or sampled ends with the same token.
    end = end_token(tokenizer)
    assert encode_conversation(tokenizer, HELLO)[0][-1] == end
    assert encode_response(tokenizer, "Hi", "Hello.", ended=True)[-1] == end
    assert encode_response(tokenizer, "Hi", "Hello.", ended=False)[-1] != end


def test_an_end_token_that_the_template_never_writes_is_refused(saved):
    load = saved(chatml())
    assert load(end_token="<|im_end|>").eos_token == "<|im_end|>"
    message = (
        r"model.end_token=<\|endoftext\|>: the chat template of .* ends a turn with <\|im_end\|> and does not"
    )
    with pytest.raises(UserError, match=message):
        load(end_token="<|endoftext|>")


def test_a_token_that_follows_the_last_turn_alone_ends_no_turn(saved):
    # As Phi-3 writes: the end of the document after the end of its last turn.
    load = saved(
        chatml(CHATML + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}", "<|endoftext|>")
    )
    tokenizer = load()
    assert tokenizer.eos_token == "<|im_end|>"
    rows = talk("a", "b", "c", "d")["messages"]
    assert learned(tokenizer, rows) == "b<|im_end|>|d<|im_end|>"
    # The config may want the other one.
    assert learned(load(end_token="<|endoftext|>"), rows) == "b|d<|im_end|>\n<|endoftext|>"


def test_a_template_without_an_end_learns_the_tokenizers_end_after_the_last_answer(saved, caplog):
    template = "{% for m in messages %}{{ '\n' + m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    load = saved(chatml(template + "{% if add_generation_prompt %}{{ '\nassistant: ' }}{% endif %}"))
    tokenizer = load()
    assert (
        "the template writes no special token after a turn; <|im_end|> is learned as the end" in caplog.text
    )
    assert learned(tokenizer, talk("a", "b", "c", "d")["messages"]) == "b|d<|im_end|>"
    ids = encode_response(tokenizer, "a", "b", ended=True)
    assert tokenizer.decode(ids) == "\nuser: a\n\nassistant: b<|im_end|>"


def test_of_several_named_templates_the_default_counts(saved):
    load = saved(chatml({"default": CHATML, "tool_use": MARKED}))
    assert learned(load(), HELLO) == "Hello.<|im_end|>"
    load = saved(chatml({"rag": CHATML, "tool_use": MARKED}))
    with pytest.raises(UserError, match="has chat templates named rag, tool_use and none named default"):
        load()


def test_pad_and_end_are_compared_as_the_template_has_them(saved):
    # Equal in the tokenizer's own settings, but turns end with another token.
    tokenizer = saved(chatml(end="<|endoftext|>", pad="<|endoftext|>"))()
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    load = saved(chatml(pad="<|im_end|>"))
    with pytest.raises(UserError, match="pad and end are the same token"):
        load()
    assert load(pad_token="<|pad|>").pad_token == "<|pad|>"
    load = saved(chatml(pad=None))
    with pytest.raises(
        UserError, match=r"it has no pad token; set model.pad_token .*, for example <\|pad\|>"
    ):
        load()


def test_settings_that_cannot_be_taken_are_refused_by_name(saved, tmp_path):
    load = saved(chatml())
    with pytest.raises(
        UserError, match=r"model.end_token=<\|imend\|>: .* no such token; similar ones: <\|im_end\|>"
    ):
        load(end_token="<|imend|>")
    with pytest.raises(UserError, match=r"model.chat_template=nowhere.jinja: no such file"):
        load(chat_template="nowhere.jinja")
    broken = tmp_path / "broken.jinja"
    for template in ("{% for m in messages %}", "{{ messages[0]['content'] }}", "{{ nothing.at.all }}"):
        broken.write_text(template)
        with pytest.raises(UserError, match=r"set model.chat_template to one that"):
            load(chat_template=str(broken))


def test_every_stage_and_actor_takes_template_and_tokens_of_the_config():
    """A tokenizer that is loaded without them is another one, where sft is left out. Import and export
    have no config."""
    calls = []
    for path in [*Path("cluster").rglob("*.py"), *Path("actors").rglob("*.py")]:
        if path.is_relative_to("cluster/interchange"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "load_tokenizer":
                calls.append((str(path), ast.unparse(node.args[-1])))
    assert len(calls) >= 9
    assert {argument for _, argument in calls} <= {
        "config.model",
        "context.config.model",
        "environment.model",
        "model",
        "self.model",
    }
