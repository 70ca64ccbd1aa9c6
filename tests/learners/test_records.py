"""One schema for the rows that the reader, the collect stage, feedback and the reward stage exchange."""

import json
from datetime import datetime
from decimal import Decimal

import pytest

from learners.data.conversations import InvalidRow, normalized_text
from learners.data.records import (
    SCHEMA_VERSION,
    SCHEMAS,
    DemonstrationRecord,
    PromptRecord,
    RankingRecord,
    ResponsesRecord,
)
from tests.learners.fixtures import talk

RANKING = {"prompt": "p", "responses": ["a", "b"], "ranks": [1, 2]}
POLICY = {"model": "hero", "version": "ppo-1"}


def test_unknown_keys_are_kept_and_absent_ones_not_added():
    row = {"prompt": "p", "answer": [1, None, {"x": "y"}], "model_dump": 3}
    assert PromptRecord.parse(row).user_row() == row
    assert PromptRecord.parse(row).value_of("model_dump") == 3
    assert PromptRecord.parse(row).value_of("absent") is None


def test_a_stored_row_reads_back_as_the_same_record():
    full = {**RANKING, "policy": [POLICY] * 2, "decoding": [{"temperature": 1.0, "stop": []}] * 2}
    full |= {"labeler": "ann", "time": 12.5, "row": {"prompt": "p", "answers": [None]}, "mood": "good"}
    record = RankingRecord.parse(full)
    stored = record.stored_row()
    assert stored["schema_version"] == SCHEMA_VERSION
    assert stored == {**full, "schema_version": SCHEMA_VERSION, "ended": [True, True]}
    assert RankingRecord.parse(stored).user_row() == {**record.user_row(), "schema_version": SCHEMA_VERSION}


def test_a_stored_row_of_a_table_is_json():
    row = {
        "when": datetime(2024, 1, 2, 3, 4),
        "price": Decimal("1.50"),
        "score": float("nan"),
        "image": b"\xff",
    }
    record = ResponsesRecord.parse({"prompt": "p", "responses": ["a", "b"], "row": row})
    assert record.row == row
    stored = json.loads(json.dumps(record.stored_row(), allow_nan=False))
    assert stored["row"] == {"when": "2024-01-02T03:04:00", "price": "1.50", "score": None, "image": "_w=="}


def test_a_row_nested_too_deeply_is_invalid():
    row = {"prompt": "p", "tests": json.loads("[" * 900 + "]" * 900)}
    with pytest.raises(InvalidRow, match="nested too deeply"):
        PromptRecord.parse(row)


def test_responses_with_ranks_are_a_ranking():
    responses = ResponsesRecord.parse({"prompt": "p", "responses": ["a", "b"], "policy": [POLICY] * 2})
    ranking = RankingRecord.parse({**responses.stored_row(), "ranks": [2, 1]})
    assert ranking.policy == responses.policy
    assert ranking.ended == [True, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": POLICY}, "key 'policy': input should be a valid list"),
        ({"policy": [POLICY]}, "key 'policy': expected 2 entries, one for each response"),
        ({"policy": [POLICY, {"model": "hero"}]}, "key 'policy[1].version': field required"),
        ({"decoding": {"temperature": 1.0}}, "key 'decoding': input should be a valid list"),
        ({"decoding": [{}] * 3}, "key 'decoding': expected 2 entries, one for each response"),
        ({"schema_version": 2}, "key 'schema_version': input should be 1"),
        ({"ranks": [True, 2]}, "key 'ranks': expected 2 whole numbers from 1 (best), equal for ties"),
        ({"ranks": None}, "key 'ranks': expected 2 whole numbers from 1 (best), equal for ties"),
        ({"ranks": [1.5, 2]}, "key 'ranks': expected 2 whole numbers from 1 (best), equal for ties"),
        ({"ranks": [1, 2**31]}, "key 'ranks': expected 2 whole numbers from 1 (best), equal for ties"),
        ({"ranks": [1, None]}, "key 'ranks': expected 2 whole numbers from 1 (best), equal for ties"),
        ({"responses": None}, "key 'responses': expected a list of at least two texts"),
        ({"ended": [True]}, "key 'ended': expected 2 times true or false"),
        ({"prompt": talk("a", "b")["messages"]}, "key 'prompt': the last message must be the user's"),
    ],
)
def test_a_wrong_ranking_is_one_sentence_that_names_the_key(change, message):
    with pytest.raises(InvalidRow) as error:
        RankingRecord.parse({**RANKING, **change})
    assert str(error.value) == message


def test_null_is_absent_at_every_depth():
    record = RankingRecord.parse({**RANKING, "policy": None, "decoding": None, "ended": None})
    assert record.user_row() == {**RANKING, "ended": [True, True]}
    row = {**talk("a", "b"), "answer": None, "tests": {"x": None, "y": [{"z": None}, None]}}
    row["messages"][1]["tool_calls"] = None
    assert DemonstrationRecord.parse(row).user_row() == {**talk("a", "b"), "tests": {"y": [{}, None]}}


@pytest.mark.parametrize(
    ("row", "responses"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": "b", "responses": None, "ranks": None}, ["a", "b"]),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "responses": []}, ["a", "b"]),
        ({"chosen": None, "rejected": None, **RANKING}, ["a", "b"]),
        (
            {"prompt": None, "chosen": talk("p", "a")["messages"], "rejected": talk("p", "b")["messages"]},
            "ab",
        ),
        ({**RANKING, "ranks": [1.0, 2.0]}, ["a", "b"]),
        ({**RANKING, "ended": [True, None]}, ["a", "b"]),
    ],
)
def test_empty_columns_beside_the_form_that_is_used(row, responses):
    record = RankingRecord.parse(row)
    assert (record.responses, record.ranks, record.ended) == (list(responses), [1, 2], [True, True])
    assert type(record.ranks[0]) is int


def test_a_demonstration_with_an_empty_conversation_is_its_prompt_and_response():
    for empty in (None, []):
        record = DemonstrationRecord.parse({"prompt": "p", "response": "r", "messages": empty})
        assert record.messages == talk("p", "r")["messages"]


FRENCH = [
    {"role": "system", "content": "In French."},
    *talk("What is red?", "Rouge.", "And blue?")["messages"],
]


def pair_after(conversation, **keys):
    answers = [{"role": "assistant", "content": text} for text in ("Bleu.", "Blue.")]
    return {"chosen": [*conversation, answers[0]], "rejected": [*conversation, answers[1]], **keys}


@pytest.mark.parametrize(
    ("prompt", "conversation", "expected"),
    [
        ("What is red?", FRENCH, FRENCH),  # the first question alone
        (" and blue?\n", FRENCH, FRENCH),
        (FRENCH, FRENCH, FRENCH),
        (FRENCH, FRENCH[-1:], FRENCH),
        (FRENCH[1:], FRENCH, FRENCH),
        (FRENCH, [], FRENCH),  # the answers alone
        ("What is red?", FRENCH[2:], FRENCH[1:]),  # the conversation goes on after the prompt
        ("And blue?", FRENCH[-1:], "And blue?"),
        ("What is green?", FRENCH, None),
        ([FRENCH[0], *talk("What is green?")["messages"]], FRENCH, None),
    ],
)
def test_of_prompt_and_conversation_the_longer_counts_unless_they_differ(prompt, conversation, expected):
    pair = pair_after(conversation, prompt=prompt)
    if expected is None:
        with pytest.raises(InvalidRow, match="keys 'prompt' and 'chosen': expected one conversation"):
            RankingRecord.parse(pair)
    else:
        assert RankingRecord.parse(pair).prompt == expected
        assert RankingRecord.parse(pair).responses == ["Bleu.", "Blue."]


def test_an_empty_answer_in_a_conversation_is_an_answer():
    pair = {"chosen": talk("p", "a")["messages"], "rejected": talk("p", "")["messages"]}
    assert RankingRecord.parse(pair).responses == ["a", ""]
    with pytest.raises(InvalidRow, match="key 'rejected': expected a text that is not empty"):
        RankingRecord.parse({"prompt": "p", "chosen": "a", "rejected": ""})


def test_a_prompt_beside_its_conversation():
    assert PromptRecord.parse({"prompt": "And blue?", "messages": FRENCH}).prompt == FRENCH
    with pytest.raises(InvalidRow, match="keys 'prompt' and 'messages': expected one conversation"):
        PromptRecord.parse({"prompt": "And green?", "messages": FRENCH})
    # One that was answered is where the prompt was taken from.
    answered = talk("What is red?", "Red.")["messages"]
    assert PromptRecord.parse({"prompt": "What is red?", "messages": answered}).prompt == "What is red?"


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ({"prompt": "p", "response": "cut \ud83d"}, "response"),
        (
            {"messages": [{"role": "user", "content": "\udc00"}, {"role": "assistant", "content": "b"}]},
            "messages[0].content",
        ),
        ({"prompt": "p", "response": "r", "tests": [{"a": ["é\ud83d"]}]}, "tests[0].a[0]"),
        ({"prompt": "p", "response": "r", "\ud83d": 1}, ""),
    ],
)
def test_half_a_character_is_an_invalid_row(row, key):
    with pytest.raises(InvalidRow) as error:
        DemonstrationRecord.parse(row)
    assert str(error.value).startswith(f"key '{key}': expected Unicode text, found half of a character (\\ud")
    assert DemonstrationRecord.parse({"prompt": "p", "response": json.loads(r'"\ud83d\ude00 é"')})


def test_the_prompt_decides_the_split_in_every_form():
    chat = [{"role": "user", "content": " WHAT is\n1?"}]
    pair = {
        "chosen": [*chat, *talk("x", "y")["messages"][1:]],
        "rejected": [*chat, *talk("x", "z")["messages"][1:]],
    }
    texts = {
        PromptRecord.parse({"prompt": "What is 1?"}).split_text,
        PromptRecord.parse({"messages": chat}).split_text,
        DemonstrationRecord.parse({"prompt": "what is 1?", "response": "1"}).split_text,
        DemonstrationRecord.parse({"messages": [*chat, *talk("x", "two")["messages"][1:]]}).split_text,
        RankingRecord.parse({**RANKING, "prompt": "what  is 1?"}).split_text,
        RankingRecord.parse(pair).split_text,
    }
    assert len(texts) == 1
    assert PromptRecord.parse({"prompt": "What is 2?"}).split_text not in texts
    # Of a longer conversation everything up to the last message of the user counts.
    longer = DemonstrationRecord.parse(talk("What is 1?", "One.", "Sure?", "Yes."))
    other = DemonstrationRecord.parse(talk("What is 1?", "One.", "Sure?", "No."))
    assert longer.split_text == other.split_text != texts.pop()
    # A conversation in which no user speaks stands for itself.
    alone = [DemonstrationRecord.parse({"messages": [{"role": "assistant", "content": c}]}) for c in "ab"]
    assert alone[0].split_text != alone[1].split_text


def test_normalized_texts_ignore_case_space_and_unicode_form():
    assert normalized_text("Ｆｕ\u0308ße  \n") == normalized_text("FÜSSE")
    assert normalized_text("a", "b") != normalized_text("ab")


def test_every_kind_of_data_has_a_schema_with_documented_fields():
    for schema in {*SCHEMAS.values()}:
        for name, field in schema.model_fields.items():
            assert field.description or name in ("text", "responses"), (schema, name)
