"""Feedback is stored in files, rankings in the form that the reward stage reads."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from common.files import read_jsonl
from common.run_paths import RunPaths
from learners.data.config import DataConfig, SourceConfig
from learners.data.ranking_groups import encode_rankings
from learners.data.sources import DatasetReader
from learners.data.tokenizer_loading import load_tokenizer
from serve.feedback import Feedback, store

ANSWERS = [
    {"text": text, "version": "ppo-1", "model": "hero", "decoding": {"temperature": 0.7, "stop": ["x"]}}
    for text in "abc"
]
RANKING = {
    "messages": [{"role": "user", "content": "What is it?"}],
    "answers": ANSWERS,
    "ranks": [2, 1, 2],
    "consent": True,
    "labeler": "ann",
}


def read(paths):
    reader = DatasetReader("rankings", DataConfig(), 0)
    return reader.read([SourceConfig(path=str(paths.feedback_rankings))]), reader


def test_a_ranking_with_consent_is_next_rounds_data(tmp_path, files):
    paths = RunPaths(tmp_path)
    for what in ("it", "that", "this"):
        messages = [{"role": "user", "content": f"What is {what}?"}]
        assert store(paths, Feedback(**{**RANKING, "messages": messages})) == "rankings.jsonl"
    rows, reader = read(paths)
    assert len(rows) == 3
    first = rows[0].record.user_row()
    assert {
        "prompt",
        "responses",
        "ranks",
        "labeler",
        "time",
        "policy",
        "decoding",
        "consent",
    } <= first.keys()
    assert first["prompt"] == "What is it?"
    assert first["policy"] == [{"model": "hero", "version": "ppo-1"}] * 3
    assert first["decoding"] == [{"temperature": 0.7, "stop": ["x"]}] * 3
    tokenizer = load_tokenizer(files.root / "sft" / "model")
    assert encode_rankings(rows, tokenizer, 128, reader).ranks_M.tolist() == [2, 1, 2] * 3


def test_a_ranking_of_a_whole_conversation_is_trained_on(tmp_path, files):
    paths = RunPaths(tmp_path)
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "What is it?"},
    ]
    for start in (0, 1, 3):  # a system message, several turns, a single prompt
        assert store(paths, Feedback(**{**RANKING, "messages": turns[start:]})) == "rankings.jsonl"
    rows, reader = read(paths)
    assert [row.record.prompt for row in rows] == [turns, turns[1:], "What is it?"]
    tokenizer = load_tokenizer(files.root / "sft" / "model")
    data = encode_rankings(rows, tokenizer, 128, reader)
    assert data.ranks_M.tolist() == [2, 1, 2] * 3
    assert len(data.groups) - 1 == 3
    text = "<|system|>Be brief.<|end|><|user|>Hi.<|end|><|assistant|>Hello.<|end|><|user|>What is it?<|end|>"
    assert tokenizer.decode(data.group(0)[0]) == f"{text}<|assistant|>a<|end|>"


@pytest.mark.parametrize(
    "change",
    [
        {"consent": False},
        {"ranks": None, "thumb": "up"},
        {"ranks": None, "comment": "good"},
    ],
)
def test_what_must_not_be_trained_on_is_stored_apart(tmp_path, change):
    paths = RunPaths(tmp_path)
    assert store(paths, Feedback(**{**RANKING, **change})) == "other.jsonl"
    assert not paths.feedback_rankings.exists()
    row = json.loads(paths.feedback_other.read_text())
    assert {key: row[key] for key in change} == change


def test_feedback_sent_again_is_stored_once_and_signed_by_its_key(tmp_path):
    paths = RunPaths(tmp_path)
    for change in ({}, {"consent": False}):
        for key in ("key-1", "key-1", "key-2", ""):
            store(paths, Feedback(**{**RANKING, **change}), key, signed_by="lab")
    rankings, other = (read_jsonl(path) for path in (paths.feedback_rankings, paths.feedback_other))
    assert [row.get("feedback_key") for row in rankings] == ["key-1", "key-2", None]
    assert [row.get("feedback_key") for row in other] == ["key-1", "key-2", None]
    assert {row["labeler"] for row in rankings} == {"lab/ann"}
    store(paths, Feedback(**{**RANKING, "labeler": "anonymous"}), signed_by="lab")
    assert read_jsonl(paths.feedback_rankings)[-1]["labeler"] == "lab"


def test_a_blind_ranking_says_in_which_order_the_answers_were_shown(tmp_path):
    paths = RunPaths(tmp_path)
    store(paths, Feedback(**RANKING, order=[2, 0, 1], blind=True))
    (row,) = read_jsonl(paths.feedback_rankings)
    assert (row["order"], row["blind"]) == ([2, 0, 1], True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": [0, 0, 1]}, "places 0 to 2, each once"),
        ({"ranks": [1, 2]}, "3 whole numbers from 1"),
        ({"ranks": [0, 1, 2]}, "3 whole numbers from 1"),
        ({"ranks": [1], "answers": ANSWERS[:1]}, "at least two texts"),
        ({"ranks": None}, "give ranks, a thumb or a comment"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "last must be the user's"),
        ({"surprise": 1}, "Extra inputs"),
        ({"answers": []}, "at least 1 item"),
    ],
)
def test_feedback_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        Feedback(**{**RANKING, **change})


def test_pages_show_and_rank_all_that_a_model_writes_but_its_end_token(endpoint):
    assert "skip_special_tokens: false" in Path("serve/pages/common.js").read_text()
    tokenizer = load_tokenizer(endpoint.root / "sft" / "model")
    ask = {
        "model": "hero",
        "messages": [{"role": "user", "content": "Hi."}],
        "max_tokens": 2,
        "temperature": 0,
    }

    def answer(token):
        bias = {str(tokenizer.convert_tokens_to_ids(token)): 100}
        whole = {"skip_special_tokens": False}
        reply = endpoint.client().chat.completions.create(**ask, logit_bias=bias, extra_body=whole)
        return reply.choices[0].message.content

    assert answer("<|user|>") == "<|user|><|user|>"
    assert not answer("<|end|>")
