"""From files to records: kinds of file, input forms, weights, duplicates, errors with file and line."""

import json

import pytest

from common.errors import UserError
from learners.data.config import DataConfig, SourceConfig
from learners.data.conversations import InvalidRow
from learners.data.records import RankingRecord
from tests.learners.fixtures import reader, talk


def read(kind, sources, **config):
    dataset = reader(kind, **config)
    listed = [SourceConfig(**s) if isinstance(s, dict) else SourceConfig(path=str(s)) for s in sources]
    return [record.user_row() for _, record in dataset.read(listed)], dataset


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("prompts", {"prompt": " "}, "key 'prompt'"),
        ("prompts", [1], "expected a JSON object"),
        (
            "prompts",
            {"messages": [{"role": "assistant", "content": "x"}]},
            "the last message must be the user's",
        ),
        ("demonstrations", {"messages": []}, "key 'messages'"),
        ("demonstrations", {"prompt": "p", "response": ""}, "key 'response'"),
        ("demonstrations", talk("a"), "the last message must be the assistant's"),
        ("demonstrations", {"messages": [{"role": "bot", "content": "x"}]}, "messages[0].role"),
        ("rankings", {"prompt": "p", "responses": ["a"], "ranks": [1]}, "at least two texts"),
        ("rankings", {"prompt": "p", "responses": ["a", "b"], "ranks": [1]}, "expected 2 whole numbers"),
        ("rankings", {"prompt": "p", "responses": ["a", "b"], "ranks": [1, 0]}, "expected 2 whole numbers"),
        ("rankings", {"prompt": "p", "responses": ["a", "b"], "ranks": [1, 2], "ended": [1]}, "key 'ended'"),
        ("rankings", {"prompt": "p", "chosen": "a"}, "key 'rejected'"),
        (
            "rankings",
            {"chosen": talk("a", "b")["messages"], "rejected": talk("c", "b")["messages"]},
            "differ in the last",
        ),
        ("corpus", {"txt": "a"}, "key 'text'"),
    ],
)
def test_an_invalid_row_is_an_error_with_its_line_or_skipped(tmp_path, kind, row, message):
    good = {
        "prompt": "p",
        "responses": ["a", "b"],
        "ranks": [1, 1],
        **({} if kind == "prompts" else talk("a", "b")),
        "text": "t",
    }
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(good) + "\n\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"rows.jsonl, line 3: ") as error:
        read(kind, [file])
    assert message in str(error.value)
    rows, dataset = read(kind, [file], max_invalid_rows=1)
    assert len(rows) == 1
    assert dataset.stats["invalid"] == 1


def test_a_pair_of_conversations_ranks_their_last_messages():
    pair = {"chosen": talk("hi", "good")["messages"], "rejected": talk("hi", "bad")["messages"]}
    record = RankingRecord.parse(pair)
    assert record.prompt == talk("hi")["messages"]
    assert (record.responses, record.ranks) == (["good", "bad"], [1, 2])
    with pytest.raises(InvalidRow):
        RankingRecord.parse({**pair, "rejected": "bad"})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.jsonl", "", "no rows for data.prompts; 0 read"),
        ("rows.jsonl", "{", "line 1: not valid JSON"),
        ("rows.json", '[{"prompt": "p"},\n{"prompt"}\n]', "not valid JSON .*at line 2"),
        ("rows.json", '{"prompt": "p"}', "expected a list of JSON objects"),
        ("rows.json", '[{"prompt": "p"}, {"prompt": 1}]', "rows.json, item 2: key 'prompt'"),
        ("rows.csv", "prompt,user\np,u\n,v\n", "rows.csv, row 2: key 'prompt'"),
        ("rows.csv", 'prompt\n"a\n', "rows.csv: cannot be read"),
        ("rows.parquet", "PAR", "rows.parquet: cannot be read"),
        ("rows.xlsx", "", "unknown kind of file; expected one of .txt, .jsonl"),
    ],
)
def test_a_file_that_cannot_be_used_is_an_error(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read("prompts", [tmp_path / name])


def test_text_in_another_encoding_is_an_error(tmp_path):
    (tmp_path / "a.txt").write_bytes("Füße".encode("latin-1"))
    with pytest.raises(UserError, match=r"a.txt: not text in UTF-8 \(invalid start byte at byte 1\)"):
        read("corpus", [tmp_path / "a.txt"])


def test_a_missing_file_is_an_error_that_names_data_root(tmp_path):
    with pytest.raises(UserError, match=r"somewhere/gsm8k/train.jsonl: no such file; data.root="):
        read("prompts", ["gsm8k/train.jsonl"], root=str(tmp_path / "somewhere"))


def test_every_format_gives_the_same_rows(tmp_path):
    from datasets import Dataset

    rows = [
        {"prompt": "NA", "response": "12", "user": "u1"},
        {"prompt": 'two\nlines, "q"', "response": "b", "user": "u2"},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    Dataset.from_list(rows).to_csv(tmp_path / "a.csv")
    Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    Dataset.from_list(rows).to_parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    expected, _ = read("demonstrations", [tmp_path / "a.jsonl"])
    assert expected[1]["messages"][0]["content"] == rows[1]["prompt"]
    for name in ("a.json", "a.csv", "a.parquet", "hub"):  # a folder is read as a hub dataset is
        assert read("demonstrations", [name], root=str(tmp_path))[0] == expected, name


def test_sources_are_mixed_by_weight_without_repeated_rows(tmp_path):
    for name, count in (("a", 60), ("b", 100)):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps({"prompt": f"{name}{i}"}) + "\n" for i in range(count))
        )
    sources = [{"path": "a.jsonl", "weight": 3}, {"path": "b.jsonl", "weight": 1}]
    rows, dataset = read("prompts", sources, root=str(tmp_path))
    drawn = [row["prompt"] for row in rows]
    assert (sum(p[0] == "a" for p in drawn), sum(p[0] == "b" for p in drawn)) == (60, 20)
    assert len(set(drawn)) == 80
    assert dataset.stats == {"read": 160, "dropped_by_mix": 80, "kept": 80}
    assert len(read("prompts", ["a.jsonl", "b.jsonl"], root=str(tmp_path))[0]) == 160
    with pytest.raises(ValueError, match="a weight to each of several sources or to none"):
        DataConfig(prompts=[{"path": "a.jsonl", "weight": 1}, "b.jsonl"])


def test_duplicates_except_for_case_and_space_are_left_out(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(
        "".join(
            json.dumps({"prompt": p, "id": i}) + "\n" for i, p in enumerate(["Hi  there\n", "hi there", "Ho"])
        )
    )
    rows, dataset = read("prompts", [file], deduplicate=True)
    assert [row["id"] for row in rows] == [0, 2]
    assert dataset.stats["duplicate"] == 1


def test_rows_are_converted_by_a_function_of_the_user(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"q": "p", "n": 2}\n{"q": "r", "n": 0}\n')
    rows, _ = read(
        "prompts", [{"path": str(tmp_path / "a.jsonl"), "convert": "tests.learners.test_sources:repeated"}]
    )
    assert [row["prompt"] for row in rows] == ["p", "p"]
    (tmp_path / "b.jsonl").write_text('{"q": "p"}\n')
    with pytest.raises(UserError, match=r"b.jsonl, line 1: .*:repeated: KeyError: 'n'"):
        read(
            "prompts",
            [{"path": str(tmp_path / "b.jsonl"), "convert": "tests.learners.test_sources:repeated"}],
        )
    with pytest.raises(UserError, match="nowhere:f: cannot be loaded"):
        read("prompts", [{"path": str(tmp_path / "a.jsonl"), "convert": "nowhere:f"}])


def repeated(row):
    return [{"prompt": row["q"]}] * row["n"]
