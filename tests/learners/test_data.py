"""From files to tokens: masks, packing, and faults told with file and line."""

import json

import pytest

from learners.datasets import (
    check_demonstration,
    check_prompt,
    check_ranking,
    encode_demonstrations,
    encode_rankings,
    pack_corpus,
    read_rows,
)
from learners.errors import UserError
from learners.tokenizer import document_separator, encode_prompt, end_token, train_tokenizer

TEXTS = ["The capital of France is Paris.", "What is 12 plus 7?"] * 10


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 320)


def talk(*turns):
    return {"messages": [{"role": "user" if i % 2 == 0 else "assistant", "content": t} for i, t in enumerate(turns)]}


def test_pad_end_of_turn_and_end_of_text_are_three_tokens(tokenizer):
    assert len({tokenizer.pad_token_id, end_token(tokenizer), document_separator(tokenizer)}) == 3


def test_any_text_survives_and_digits_stand_alone(tokenizer):
    for text in ("Paris 1234", "naïve Füße", "日本語 🙂", "a\n\tb"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("1234")) == 4


def test_a_tokenizer_whose_pad_is_its_end_is_refused(tokenizer):
    other = train_tokenizer(TEXTS, 320)
    other.pad_token = other.eos_token
    with pytest.raises(UserError, match="would never learn to stop"):
        end_token(other)


def test_only_what_the_assistant_writes_is_learned(tokenizer, tmp_path):
    data = encode_demonstrations([talk("Hi there.", "Hello.", "Why?", "So.")], tokenizer, 128, tmp_path)
    learned = tokenizer.decode(data.tokens_N[data.learn_N])
    assert learned == "Hello.<|end|>So.<|end|>"


def test_a_template_without_generation_marks_gives_the_same_mask(tokenizer, tmp_path):
    bare = train_tokenizer(TEXTS, 320)
    bare.chat_template = bare.chat_template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    rows = [talk("Hi there.", "Hello.", "Why?", "So.")]
    one, two = (encode_demonstrations(rows, t, 128, tmp_path) for t in (tokenizer, bare))
    assert one.tokens_N.tolist() == two.tokens_N.tolist()
    assert one.learn_N.tolist() == two.learn_N.tolist()


def test_a_prompt_ends_where_the_assistant_begins(tokenizer):
    assert tokenizer.decode(encode_prompt(tokenizer, "Hi")) == "<|user|>Hi<|end|><|assistant|>"


def test_packing_keeps_every_token_but_the_last_rest(tokenizer):
    data = pack_corpus(TEXTS, tokenizer, 16)
    whole = "<|endoftext|>".join([*TEXTS, ""])
    assert whole.startswith(tokenizer.decode(data.tokens_N))
    assert set(data.lengths_S.tolist()) == {16}
    assert not data.learn_N[::16].any()


def test_the_same_responses_ranked_twice_are_one_group(tokenizer, tmp_path):
    row = {"prompt": "p", "responses": ["a", "b", "c"], "ranks": [1, 2, 2], "ended": [True, True, False]}
    rows = [row, {**row, "prompt": "q"}, {**row, "ranks": [2, 1, 1]}]
    data = encode_rankings(rows, tokenizer, 64, tmp_path)
    assert data.rankings() == [[[1, 2, 2], [2, 1, 1]], [[1, 2, 2]]]
    closed, _, cut = data.group(0)
    assert closed[-1] == end_token(tokenizer)
    assert cut[-1] != end_token(tokenizer)


@pytest.mark.parametrize(
    ("check", "row", "told"),
    [
        (check_prompt, {"prompt": " "}, "key 'prompt'"),
        (check_prompt, [1], "expected a JSON object"),
        (check_demonstration, {"messages": []}, "key 'messages'"),
        (check_demonstration, talk("a"), "the last message must be the assistant's"),
        (check_demonstration, {"messages": [{"role": "bot", "content": "x"}]}, "messages[0].role"),
        (check_ranking, {"prompt": "p", "responses": ["a"], "ranks": [1]}, "at least two texts"),
        (check_ranking, {"prompt": "p", "responses": ["a", "b"], "ranks": [1]}, "expected 2 whole numbers"),
        (check_ranking, {"prompt": "p", "responses": ["a", "b"], "ranks": [1, 0]}, "expected 2 whole numbers"),
        (check_ranking, {"prompt": "p", "responses": ["a", "b"], "ranks": [1, 2], "ended": [1]}, "key 'ended'"),
    ],
)
def test_a_wrong_row_is_told_with_file_and_line(tmp_path, check, row, told):
    good = {"prompt": "p", "responses": ["a", "b"], "ranks": [1, 1], **talk("a", "b")}
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(good) + "\n\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"rows.jsonl, line 3: ") as fault:
        read_rows(file, check)
    assert told in str(fault.value)


@pytest.mark.parametrize(("text", "told"), [("", "the file is empty"), ("{", "line 1: not valid JSON")])
def test_a_file_without_rows_is_told(tmp_path, text, told):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(UserError, match=told):
        read_rows(tmp_path / "rows.jsonl", check_prompt)


def test_a_conversation_over_the_context_is_told_with_its_row(tokenizer, tmp_path):
    rows = [talk("a", "b"), talk("word " * 50, "b")]
    with pytest.raises(UserError, match=r"row 2: \d+ tokens, but model.context is 32"):
        encode_demonstrations(rows, tokenizer, 32, tmp_path)
