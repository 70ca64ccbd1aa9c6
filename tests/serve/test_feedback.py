"""What people say lands in the files, as the reward stage reads it."""

import json

import pytest
from pydantic import ValidationError

from learners.data.config import DataConfig, SourceConfig
from learners.data.encoding import encode_rankings
from learners.data.sources import DatasetReader
from learners.models import load_tokenizer
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


def test_a_ranking_with_consent_is_next_rounds_data(tmp_path, files):
    for what in ("it", "that", "this"):
        asked = [{"role": "user", "content": f"What is {what}?"}]
        assert store(tmp_path, Feedback(**{**RANKING, "messages": asked})) == "rankings.jsonl"
    reader = DatasetReader("rankings", DataConfig(), 0)
    located = reader.read([SourceConfig(path=str(tmp_path / "rankings.jsonl"))])
    rows = [row for _, row in located]
    assert len(rows) == 3
    assert {"prompt", "responses", "ranks", "labeler", "time", "policy", "decoding", "consent"} <= rows[
        0
    ].keys()
    assert rows[0]["policy"][0] == {"model": "hero", "version": "ppo-1"}
    tokenizer = load_tokenizer(files.root / "sft" / "model")
    assert encode_rankings(located, tokenizer, 128, reader).ranks_M.tolist() == [2, 1, 2] * 3


@pytest.mark.parametrize(
    "change",
    [
        {"consent": False},
        {"ranks": None, "thumb": "up"},
        {"ranks": None, "comment": "good"},
        {"messages": [{"role": "system", "content": "Be brief."}, *RANKING["messages"]]},
    ],
)
def test_what_must_not_be_trained_on_is_kept_apart(tmp_path, change):
    assert store(tmp_path, Feedback(**{**RANKING, **change})) == "other.jsonl"
    assert not (tmp_path / "rankings.jsonl").exists()
    row = json.loads((tmp_path / "other.jsonl").read_text())
    assert {key: row[key] for key in change} == change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"ranks": [1, 2]}, "3 whole numbers from 1"),
        ({"ranks": [0, 1, 2]}, "3 whole numbers from 1"),
        ({"ranks": [1], "answers": ANSWERS[:1]}, "at least two texts"),
        ({"ranks": None}, "give ranks, a thumb or a comment"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "last must be the user's"),
        ({"surprise": 1}, "Extra inputs"),
        ({"answers": []}, "at least 1 item"),
    ],
)
def test_what_makes_no_sense_is_refused(change, told):
    with pytest.raises(ValidationError, match=told):
        Feedback(**{**RANKING, **change})
