"""Turns of the assistant in chat templates: where they begin, which token ends them, and that one text has
one encoding, whether it is demonstrated, ranked or sampled."""

import json

import pytest
from tokenizers import AddedToken

from common.errors import UserError
from learners.data.chat_template import tell_once, turn_form
from learners.data.conversations import InvalidRow
from learners.data.encoding import encode_demonstrations, encode_prompts
from learners.data.ranking_groups import encode_rankings
from learners.data.records import SCHEMAS
from learners.data.sources import SourceRow
from learners.data.turn_tokens import encode_conversation, encode_prompt, encode_response, response_texts
from tests.learners.fixtures import reader, talk
from tests.learners.tokenizers_of_models import CHATML, HELLO, MARKED, chatml, learned, sentencepiece


def source_rows(kind, *rows):
    return [SourceRow(f"here, row {n}", SCHEMAS[kind].parse(row)) for n, row in enumerate(rows, 1)]


# The end of a turn.


def test_marks_that_leave_the_end_token_out_are_extended_to_it():
    inside = MARKED.replace(
        "{{- m['content'] + '<|im_end|>' -}}{%- endgeneration -%}",
        "{{- m['content'] -}}{%- endgeneration -%}{{- '<|im_end|>' -}}",
    )
    assert inside != MARKED
    assert learned(chatml(inside), talk("a", "b", "c", "d")["messages"]) == "b<|im_end|>|d<|im_end|>"


# Marks and templates.


@pytest.mark.parametrize(
    "marks", ["{% generation %}", "{%- generation -%}", "{%-generation-%}", "{%+ generation +%}"]
)
def test_marks_are_known_however_they_are_written(marks):
    # Words are rewritten, so that only the marks tell where they are.
    template = MARKED.replace("{%- generation -%}", marks).replace(
        "m['content'] + '<|im_end|>' -}}{%- end", "m['content'] | replace('b', 'e') + '<|im_end|>' -}}{%- end"
    )
    assert learned(chatml(template), talk("a", "b", "c", "d")["messages"]) == "e<|im_end|>|d<|im_end|>"


def test_only_what_is_needed_of_a_conversation_is_rendered():
    picky = "{% if not messages | map(attribute='role') | select('eq', 'user') | list %}"
    picky += "{{ raise_exception('No user') }}{% endif %}"
    system = {"role": "system", "content": "Be nice."}
    assert learned(chatml(picky + CHATML), [system, *HELLO]) == "Hello.<|im_end|>"
    # The prompt of the first turn is refused; the turn is found all the same.
    greeting = {"role": "assistant", "content": "Welcome."}
    assert (
        learned(chatml(picky + CHATML), [system, greeting, *HELLO]) == "Welcome.<|im_end|>|Hello.<|im_end|>"
    )


def test_reasoning_that_the_template_removes_from_earlier_turns_is_not_missed():
    thinking = CHATML.replace(
        "+ m['content'] +", "+ (m['content'] if loop.last else m['content'].split('</think>')[-1] | trim) +"
    )
    rows = talk("2+2?", "<think>\nI add.\n</think>\n\nIt is 4.", "1+1?", "<think>\nHm.\n</think>\n\nIt is 2.")
    expected = "It is 4.<|im_end|>|<think>\nHm.\n</think>\n\nIt is 2.<|im_end|>"
    assert learned(chatml(thinking), rows["messages"]) == expected


def test_reasoning_that_the_template_drops_from_the_answer_to_learn_is_told(caplog):
    tell_once.cache_clear()
    dropping = chatml(CHATML.replace("+ m['content'] +", "+ m['content'].split('</think>')[-1] | trim +"))
    messages = talk("2+2?", "<think>\nI add.\n</think>\n\nIt is 4.")["messages"]
    assert learned(dropping, messages) == "It is 4.<|im_end|>"
    assert "leaves out or changes a part of some answers" in caplog.text


def test_an_answer_is_found_that_is_rewritten_and_has_no_end_token():
    # As GLM 4.5 writes: reasoning in a form of its own, and nothing after an answer.
    parts = "{% set parts = m['content'].split('</think>') %}"
    parts += "{{ '\n<think>' + parts[0].split('<think>')[-1] | trim }}"
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] }}{% if m['role'] == 'assistant' %}"
        + parts
        + "{{ '</think>\n' + parts[-1] | trim }}{% else %}{{ '\n' + m['content'] }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
    )
    rows = talk("2+2?", "<think>\nI add.\n</think>\n\nIt is 4.", "1+1?", "<think>Hm.</think>It is 2.")[
        "messages"
    ]
    tokenizer = chatml(template)
    second = "\n<think>Hm.</think>\nIt is 2.<|im_end|>"
    assert learned(tokenizer, rows) == "\n<think>I add.</think>\nIt is 4.|" + second
    ids = encode_response(tokenizer, rows[:-1], rows[-1]["content"], ended=True)
    assert tokenizer.decode(ids[len(encode_prompt(tokenizer, rows[:-1])) :]) == second


# Where prompt and answer meet.


def test_a_token_of_header_and_answer_is_two_as_in_sampling():
    tokenizer = chatml()
    prompt = encode_prompt(tokenizer, "Hi")
    assert len(tokenizer.encode("\n\n")) == 1
    ids, mask = encode_conversation(tokenizer, talk("Hi", "\nHello.")["messages"])
    assert ids[: len(prompt)] == prompt
    assert mask == [False] * len(prompt) + [True] * (len(ids) - len(prompt))
    assert tokenizer.decode(ids[len(prompt) :]) == "\nHello.<|im_end|>"


def test_a_header_that_takes_white_space_in_is_not_learned():
    header = "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|im_end|>' }}{% endfor %}"
    header += "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    tokenizer = chatml(header)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken("<|user|>"), AddedToken("<|assistant|>", rstrip=True)]}
    )
    assert learned(tokenizer, talk("a", "One.", "b", " Two.")["messages"]) == "One.<|im_end|>| Two.<|im_end|>"


TEXTS_OF_POLICIES = ["Paris.", " Paris. ", "\nPa", "", "is Pa<answer>4</answer> is"]


@pytest.mark.parametrize("make", [chatml, sentencepiece, lambda: chatml(MARKED)])
def test_demonstration_ranking_and_sample_of_one_text_are_the_same_tokens(make):
    tokenizer = make()
    prompt = encode_prompt(tokenizer, "Capital?")
    for text in TEXTS_OF_POLICIES:
        demonstrated, _ = encode_conversation(tokenizer, talk("Capital?", text)["messages"])
        assert encode_response(tokenizer, "Capital?", text, ended=True) == demonstrated
        assert demonstrated[: len(prompt)] == prompt
        sampled = demonstrated[len(prompt) :]
        (back,) = response_texts(tokenizer, [sampled])
        assert encode_response(tokenizer, "Capital?", back, ended=True) == demonstrated
        cut = encode_response(tokenizer, "Capital?", back, ended=False)
        assert [*cut, tokenizer.eos_token_id] == demonstrated


def test_an_end_token_in_the_text_of_an_answer_is_not_doubled():
    tokenizer = chatml()
    expected, _ = encode_conversation(tokenizer, HELLO)
    assert encode_conversation(tokenizer, talk("Hi", "Hello.<|im_end|>\n")["messages"])[0] == expected
    assert encode_response(tokenizer, "Hi", "Hello.<|im_end|>", ended=True) == expected


def test_an_answer_has_no_space_mark_that_no_policy_writes():
    tokenizer = sentencepiece()
    prompt = encode_prompt(tokenizer, "Capital?")
    ids = encode_response(tokenizer, "Capital?", "Paris", ended=True)
    assert tokenizer.convert_ids_to_tokens(ids[len(prompt) :]) == ["Pa", "r", "is", "</s>"]


@pytest.mark.parametrize("written", ["{{ ' ' + m['content'] }}", "{{ ' ' + m['content'] | trim }}"])
def test_a_space_that_the_template_writes_before_answers_is_not_doubled(written):
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %}"
        + written
        + "<|im_end|>{% endif %}{% endfor %}"
    )
    tokenizer = chatml(template)
    prompt = encode_prompt(tokenizer, "Hi")
    for text in (" Hello.", " Hello. ", " \nHello."):
        sampled = [*tokenizer.encode(text), tokenizer.eos_token_id]
        (back,) = response_texts(tokenizer, [sampled])
        assert back == text[1:]
        assert encode_response(tokenizer, "Hi", back, ended=True) == prompt + sampled


# The text that rewards, labelers and judges get.


def test_special_tokens_that_a_policy_writes_are_seen():
    tokenizer = chatml()
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    answer = tokenizer.encode("<answer>4</answer> .")
    assert response_texts(tokenizer, [[*answer, end], answer, [*answer, end, pad, pad], [end], []]) == [
        *["<answer>4</answer> ."] * 3,
        "",
        "",
    ]


# Rows that a template or a tokenizer refuses.

REFUSES_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
)
SYSTEM = {"role": "system", "content": "Be nice."}
HALF = json.loads('"\\ud83d"')


def encode_all(kind, rows, tokenizer, **config):
    dataset = reader(kind, **config)
    located = source_rows(kind, *rows)
    if kind == "prompts":
        kept, _ = encode_prompts(located, tokenizer, 99, dataset)
        return len(kept), dataset
    if kind == "rankings":
        return len(encode_rankings(located, tokenizer, 99, dataset, 0.4).groups) - 1, dataset
    return len(encode_demonstrations(located, tokenizer, 99, dataset).lengths_S), dataset


def prompts_of(kind, prompts):
    answers = {
        "demonstrations": {"response": "x"},
        "rankings": {"chosen": "x", "rejected": "y"},
        "prompts": {},
    }
    return [{"prompt": prompt, **answers[kind]} for prompt in prompts]


@pytest.mark.parametrize("kind", ["demonstrations", "rankings", "prompts"])
def test_a_row_that_the_template_refuses_is_named_and_may_be_skipped(kind):
    tokenizer = chatml(REFUSES_SYSTEM + CHATML)
    refused = [SYSTEM, {"role": "user", "content": "c"}]
    rows = prompts_of(kind, ["a", "b", refused, "d"])
    message = r"here, row 3: the chat template refuses the conversation \(System role not supported\)"
    with pytest.raises(UserError, match=message):
        encode_all(kind, rows, tokenizer)
    count, dataset = encode_all(kind, rows, tokenizer, max_invalid_rows=1)
    assert count == 3
    assert dataset.stats["invalid"] == 1


def test_a_text_that_the_tokenizer_cannot_encode_is_an_invalid_row():
    with pytest.raises(InvalidRow, match="the tokenizer cannot encode the text"):
        encode_prompt(chatml(), f"c {HALF}")


# What is checked when a tokenizer is loaded.


def test_the_form_of_a_turn_is_what_stands_around_its_words():
    form = turn_form(chatml(CHATML.replace("m['content'] + '<", "m['content'] + ' <")))
    assert (form.opening, form.closing, form.token) == ("", " <|im_end|>", "<|im_end|>")
