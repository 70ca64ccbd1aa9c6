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
        ("rows.json", '{"prompt": 1}', "rows.json, item 1: key 'prompt'"),
        ("rows.json", '{"prompt": "p"}\n{"prompt": 1}', "rows.json, line 2: key 'prompt'"),
        ("rows.json", '{"prompt": "p"}\n{"prompt"', "rows.json, line 2: not valid JSON"),
        ("rows.jsonl", "[" * 99_999, "line 1: not JSON that can be read"),
        ("rows.jsonl", f'{{"prompt": {"9" * 9999}}}', "line 1: not JSON that can be read"),
        ("rows.json", '[{"prompt": "p"}, {"prompt": 1}]', "rows.json, item 2: key 'prompt'"),
        ("rows.csv", "prompt,user\np,u\n,v\n", "rows.csv, row 2: key 'prompt'"),
        ("rows.csv", 'prompt\n"a\n', "rows.csv: cannot be read"),
        ("rows.csv", "prompt,user\np,u\nq, r,u\n", "rows.csv, row 2: 3 cells, but the header has 2"),
        ("rows.csv", "prompt,prompt\np,q\n", "two columns have one name; the columns are prompt, prompt"),
        ("rows.jsonl.gz", "no gzip", "rows.jsonl.gz: cannot be read"),
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
    (tmp_path / "a.csv").write_bytes("text\nFoot\nFüße\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"a.csv: line 3: not text in UTF-8 \(invalid start byte at byte 1\)"):
        read("corpus", [tmp_path / "a.csv"])
    # A line of JSONL is a row, which can be skipped.
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in ("Foot", "Füße", "End")]
    (tmp_path / "a.jsonl").write_bytes("\n".join(lines).encode("latin-1"))
    with pytest.raises(
        UserError, match=r"a.jsonl, line 2: not text in UTF-8 .*at byte 11\); save it as UTF-8"
    ):
        read("corpus", [tmp_path / "a.jsonl"])
    rows, dataset = read("corpus", [tmp_path / "a.jsonl"], max_invalid_rows=1)
    assert (rows, dataset.stats["invalid"]) == ([{"text": "Foot"}, {"text": "End"}], 1)


def test_a_missing_file_is_an_error_that_names_data_root(tmp_path):
    with pytest.raises(UserError, match=r"somewhere/gsm8k/train.jsonl: no such file; data.root="):
        read("prompts", ["gsm8k/train.jsonl"], root=str(tmp_path / "somewhere"))


@pytest.mark.parametrize(
    ("texts", "duplicates"),
    [
        (["Sort: 1 12", "Sort: 11 2"], 0),
        (["What is 2 3 plus 1?", "What is 23 plus 1?"], 0),
        (["a b", "ab"], 0),
        (["What is 2²?", "What is 22?"], 0),
        (["LaTeX: \\nu", "LaTeX: u"], 0),
        (["Polish  the\u00a0desk\n", "polish the desk"], 1),
        (["Fu\u0308\u00dfe", "F\u00fcsse"], 1),
    ],
)
def test_only_case_and_the_amount_of_white_space_make_no_difference(tmp_path, texts, duplicates):
    rows = [{"prompt": text, "id": i} for i, text in enumerate(texts)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    _, dataset = read("prompts", [tmp_path / "a.json"], deduplicate=True)
    assert dataset.stats["duplicate"] == duplicates
    talks = [{"messages": talk(text, "yes")["messages"], "id": i} for i, text in enumerate(texts)]
    (tmp_path / "b.json").write_text(json.dumps(talks))
    _, dataset = read("demonstrations", [tmp_path / "b.json"], deduplicate=True)
    assert dataset.stats["duplicate"] == duplicates


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


def test_a_source_without_rows_beside_others_is_told(tmp_path, caplog):
    (tmp_path / "a.jsonl").write_text('{"prompt": "p"}\n')
    (tmp_path / "b.jsonl").write_text("")
    assert len(read("prompts", ["a.jsonl", "b.jsonl"], root=str(tmp_path))[0]) == 1
    assert caplog.messages == ["data.prompts: b.jsonl has no rows"]


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
    with pytest.raises(
        UserError, match=r"b.jsonl, line 1: .*:repeated: KeyError: 'n' .*; the row has the keys q$"
    ):
        read(
            "prompts",
            [{"path": str(tmp_path / "b.jsonl"), "convert": "tests.learners.test_sources:repeated"}],
        )
    with pytest.raises(UserError, match="nowhere:f: cannot be loaded"):
        read("prompts", [{"path": str(tmp_path / "a.jsonl"), "convert": "nowhere:f"}])


def repeated(row):
    return [{"prompt": row["q"]}] * row["n"]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("one_mapping", None),
        ("generated", None),
        ("nothing", "expected a list of rows .*, found None"),
        ("a_text", "expected a list of rows .*, found 'p'"),
        ("failing_generator", "RuntimeError: half-way"),
        ("NO_FUNCTION", "is int; expected a function"),
    ],
)
def test_what_a_convert_function_may_return(tmp_path, function, message):
    (tmp_path / "a.jsonl").write_text('{"q": "p"}\n{"q": "r"}\n')
    source = {"path": str(tmp_path / "a.jsonl"), "convert": f"tests.learners.test_sources:{function}"}
    if message:
        with pytest.raises(UserError, match=message):
            read("prompts", [source])
    else:
        assert [row["prompt"] for row in read("prompts", [source])[0]] == ["p", "r"]


NO_FUNCTION = 3


def one_mapping(row):
    return {"prompt": row["q"]}


def generated(row):
    yield {"prompt": row["q"]}


def nothing(row):
    return None


def a_text(row):
    return row["q"]


def failing_generator(row):
    yield {"prompt": row["q"]}
    raise RuntimeError("half-way")
