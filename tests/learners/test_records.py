"""One schema for the rows that the reader, the collect stage, feedback and the reward stage exchange."""

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
    row = {"prompt": "p", "answer": [1, {"x": None}], "model_dump": 3}
    assert PromptRecord.parse(row).user_row() == row
    assert PromptRecord.parse(row).value_of("model_dump") == 3
    assert PromptRecord.parse(row).value_of("absent") is None


def test_a_stored_row_reads_back_as_the_same_record():
    full = {**RANKING, "policy": [POLICY] * 2, "decoding": [{"temperature": 1.0, "stop": None}] * 2}
    full |= {"labeler": "ann", "time": 12.5, "row": {"prompt": "p", "answers": None}, "mood": "good"}
    record = RankingRecord.parse(full)
    stored = record.stored_row()
    assert stored["schema_version"] == SCHEMA_VERSION
    assert stored == {**full, "schema_version": SCHEMA_VERSION, "ended": [True, True]}
    assert RankingRecord.parse(stored).user_row() == {**record.user_row(), "schema_version": SCHEMA_VERSION}


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
        ({"responses": None}, "key 'responses': expected a list of at least two texts"),
        ({"ended": [True]}, "key 'ended': expected 2 times true or false"),
        ({"prompt": talk("a", "b")["messages"]}, "key 'prompt': the last message must be the user's"),
    ],
)
def test_a_wrong_ranking_is_one_sentence_that_names_the_key(change, message):
    with pytest.raises(InvalidRow) as error:
        RankingRecord.parse({**RANKING, **change})
    assert str(error.value) == message


def test_an_empty_optional_value_is_as_good_as_none():
    record = RankingRecord.parse({**RANKING, "policy": None, "decoding": None, "ended": None})
    assert record.user_row() == {**RANKING, "ended": [True, True]}


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
