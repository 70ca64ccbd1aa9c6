"""The same rows from every format, folder, pattern and saved data set; splits and parts of them."""

import bz2
import csv
import gzip
import json

import pyarrow
import pytest
from datasets import Dataset, DatasetDict
from pydantic import ValidationError

from common.errors import UserError
from learners.data.config import DataConfig, SourceConfig
from learners.data.formats import COMPRESSIONS
from learners.data.locations import _hub_rows, local_path
from tests.learners.fixtures import reader, talk

ROWS = [
    {"prompt": "NA", "response": "12", "user": "u1", "when": "2024-01-02 03:04:05"},
    {"prompt": 'two\nlines, "q"; é', "response": "b", "user": "007", "when": "2024-01-02"},
    {"prompt": "p", "response": "true", "user": "1.0", "when": "null"},
]
NESTED = [
    {**talk("Hi", "Hello."), "tests": {"a": 1}},
    {**talk("Call."), "tests": {"b": [1.5, None]}},
]
NESTED[1]["messages"].append(
    {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"x": 1}}]}
)


def read(path, root=None, kind="demonstrations", documents="paragraphs", **source):
    dataset = reader(kind, root=str(root or "."), documents=documents)
    return [record.user_row() for _, record in dataset.read([SourceConfig(path=str(path), **source)])]


def json_lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_csv(path, encoding="utf-8", delimiter=",", end="\n"):
    with open(path, "w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter, lineterminator=end)
        writer.writeheader()
        writer.writerows(ROWS)


def test_every_format_gives_the_same_rows(tmp_path):
    text = json_lines(ROWS)
    for name in ("a.jsonl", "UPPER.JSONL", "lines.json", "a.ndjson", "folder/a.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "a.json").write_text(json.dumps(ROWS, indent=1))
    (tmp_path / "mark.json").write_text(json.dumps(ROWS), encoding="utf-8-sig")
    (tmp_path / "mark.jsonl").write_text(text, encoding="utf-8-sig")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text[:9].encode()) + gzip.compress(text[9:].encode()))
    (tmp_path / "A.JSON.BZ2").write_bytes(bz2.compress(text.encode()))
    with pyarrow.output_stream(str(tmp_path / "a.jsonl.zst"), compression="zstd") as file:
        file.write(text.encode())
    write_csv(tmp_path / "a.csv")
    write_csv(tmp_path / "excel.csv", "utf-8-sig", ";", "\r\n")
    write_csv(tmp_path / "a.tsv", delimiter="\t")
    dataset = Dataset.from_list(ROWS)
    dataset.to_parquet(tmp_path / "a.parquet")
    dataset.to_parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    dataset.save_to_disk(tmp_path / "saved", num_shards=2)
    DatasetDict(train=dataset, test=dataset.select([0])).save_to_disk(tmp_path / "saved_dict")
    expected = read(tmp_path / "a.jsonl")
    assert [row["when"] for row in expected] == [row["when"] for row in ROWS]
    assert expected[1]["messages"][0]["content"] == ROWS[1]["prompt"]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 18
    for name in names:
        assert read(name, tmp_path) == expected, name


def test_every_nested_format_gives_the_same_rows(tmp_path):
    (tmp_path / "a.jsonl").write_text(json_lines(NESTED))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.jsonl").write_text(json_lines(NESTED))
    dataset = Dataset.from_list(NESTED)
    dataset.to_parquet(tmp_path / "a.parquet")
    dataset.save_to_disk(tmp_path / "saved")
    expected = read(tmp_path / "a.jsonl")
    assert "tool_calls" not in expected[0]["messages"][1]
    assert expected[1]["tests"] == {"b": [1.5, None]}
    for name in ("folder", "saved", "a.parquet"):
        assert read(name, tmp_path) == expected, name


def test_columns_of_mixed_types_are_kept_by_folders_and_saved_data(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jsonl").write_text('{"prompt": "x", "answer": 5, "tests": {"a": 1}}\n')
    (tmp_path / "a" / "2.jsonl").write_text('{"prompt": "y", "answer": "five", "tests": {"b": 2}}\n')
    expected = [
        {"prompt": "x", "answer": 5, "tests": {"a": 1}},
        {"prompt": "y", "answer": "five", "tests": {"b": 2}},
    ]
    assert read("a", tmp_path, "prompts") == expected
    # The library keeps such columns as JSON text under a type of its own.
    mixed = Dataset.from_list(expected, on_mixed_types="use_json")
    mixed.to_parquet(tmp_path / "b.parquet")
    mixed.save_to_disk(tmp_path / "c")
    assert read("b.parquet", tmp_path, "prompts") == read("c", tmp_path, "prompts") == expected


def test_texts_of_a_folder_are_the_documents_of_its_files(tmp_path):
    texts = {
        "a.txt": "\ufeffOne,\nstill one.\r\n\r\nTwo.\n",
        "b.txt": " Three. \n \n\n\n\nFour.",
        "c.txt": "\n \n",
    }
    (tmp_path / "books").mkdir()
    for name, text in texts.items():
        (tmp_path / "books" / name).write_bytes(text.encode())
    paragraphs = [{"text": "One,\nstill one."}, {"text": "Two."}, {"text": "Three."}, {"text": "Four."}]
    assert read("books", tmp_path, "corpus") == paragraphs
    assert read("books/*.txt", tmp_path, "corpus") == paragraphs
    whole = [{"text": "One,\nstill one.\n\nTwo.\n"}, {"text": texts["b.txt"]}]
    assert read("books", tmp_path, "corpus", documents="file") == whole


def test_a_folder_is_read_whatever_its_formats(tmp_path, caplog):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    (tmp_path / "b.txt").write_text("two")
    (tmp_path / "c.xlsx").write_text("?")
    (tmp_path / "README.md").write_text("About this.")
    (tmp_path / "LICENSE").write_text("Free.")
    assert read(tmp_path, kind="corpus") == [{"text": "one"}, {"text": "two"}]
    assert caplog.messages == [f"{tmp_path}: not read, since unknown kinds of file: c.xlsx"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: cannot be read as a folder of data \(.* contain any data"):
        read(tmp_path / "empty", kind="corpus")


def test_a_folder_has_the_splits_and_subsets_that_the_hub_would_see(tmp_path):
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(json_lines([{"prompt": f"{name} {i}"} for i in range(10)]))
    assert len(read(tmp_path, kind="prompts")) == 10
    some = read(tmp_path, kind="prompts", split="test[:2]+train[90%:]")
    assert some == [{"prompt": "test 0"}, {"prompt": "test 1"}, {"prompt": "train 9"}]
    with pytest.raises(UserError, match=r"no split 'val' \(split=val\[:3\]\); expected train or test"):
        read(tmp_path, kind="prompts", split="val[:3]")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: small\n  data_files: test.jsonl\n---\n"
    )
    assert read(tmp_path, kind="prompts", subset="small")[0] == {"prompt": "test 0"}
    with pytest.raises(UserError, match=r"'large' not found. Available: \['small'\]"):
        read(tmp_path, kind="prompts", subset="large")


def test_a_part_of_a_file_is_as_that_of_a_folder(tmp_path):
    rows = [{"prompt": f"p{i}"} for i in range(10)]
    (tmp_path / "a.jsonl").write_text(json_lines(rows))
    Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    DatasetDict(train=Dataset.from_list(rows)).save_to_disk(tmp_path / "saved")
    for name in ("a.jsonl", "a.parquet", "a.js*", "saved"):
        assert read(name, tmp_path, "prompts", split="train[:3]") == rows[:3], name
        assert read(name, tmp_path, "prompts", split="train[80%:]+train[0:1]") == [*rows[8:], rows[0]], name


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            {"path": "a.jsonl", "split": "test"},
            r"a.jsonl: no split 'test' \(split=test\); expected train, or a part",
        ),
        ({"path": "a.jsonl", "split": "nonsense!"}, "no split 'nonsense!'"),
        ({"path": "a.jsonl", "split": "train[:x]"}, r"a.jsonl: split=train\[:x\]: Unrecognized"),
        ({"path": "a.jsonl", "subset": "main"}, "subset=main: a file has no subsets; leave it out"),
        ({"path": "b*.jsonl"}, r"b\*.jsonl: no file has a name like this"),
        ({"path": "*"}, r"a.xlsx: unknown kind of file; expected one of .txt"),
        ({"path": "b.jsonl.gz"}, "no such file"),
    ],
)
def test_what_a_file_does_not_have_is_refused_by_name(tmp_path, source, message):
    (tmp_path / "a.jsonl").write_text('{"prompt": "p"}\n')
    (tmp_path / "a.xlsx").write_text("")
    with pytest.raises(UserError, match=message):
        read(root=tmp_path, kind="prompts", **source)


def test_a_plan_finds_missing_files_and_wrong_splits(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    config = DataConfig(root=str(tmp_path))
    assert local_path(SourceConfig(path="a.jsonl", split="train[:5]"), config) == tmp_path / "a.jsonl"
    assert local_path(SourceConfig(path="*.jsonl"), config) == tmp_path / "*.jsonl"
    assert local_path(SourceConfig(path="owner/dataset", split="test", subset="x"), config) is None
    with pytest.raises(ValidationError, match="path"):
        DataConfig(prompts="")
    with pytest.raises(UserError, match=r"data.heldout=.*a.jsonl: no split 'test'"):
        local_path(SourceConfig(path="a.jsonl", split="test"), config, "data.heldout")


def test_a_folder_whose_name_has_brackets(tmp_path):
    folder = tmp_path / "data [1]"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"prompt": "p"}\n')
    assert read("a.jsonl", folder, "prompts") == read("*.jsonl", folder, "prompts") == [{"prompt": "p"}]
    with pytest.raises(UserError, match=r"b.jsonl: no such file"):
        read("b.jsonl", folder, "prompts")


def test_a_saved_data_set_that_is_not_whole_is_an_error(tmp_path):
    Dataset.from_list([{"prompt": "p"}]).save_to_disk(tmp_path)
    next(tmp_path.glob("*.arrow")).unlink()
    with pytest.raises(UserError, match=r"data-00000-of-00001.arrow: cannot be read"):
        read(tmp_path, kind="prompts")
    (tmp_path / "state.json").write_text("")
    with pytest.raises(UserError, match="cannot be read as a saved data set"):
        read(tmp_path, kind="prompts")


def hub_rows(folder, documents="paragraphs", **source):
    """As from the hub: the library takes a folder for a hub dataset."""
    return list(_hub_rows(SourceConfig(path=str(folder), **source), documents))


def test_a_hub_dataset_says_what_the_library_has_made_of_texts(tmp_path, caplog):
    rows = [{"prompt": "NA", "when": "2024-01-02 03:04:05", "number": 7}] * 3
    for name in ("json", "csv"):
        (tmp_path / name).mkdir()
    (tmp_path / "json" / "a.jsonl").write_text(json_lines(rows))
    found = hub_rows(tmp_path / "json", split="train[:2]")
    assert [where for where, _ in found] == [f"{tmp_path}/json, row 1", f"{tmp_path}/json, row 2"]
    (tmp_path / "csv" / "a.csv").write_text("prompt,when,number\nNA,,7\n")
    assert hub_rows(tmp_path / "csv")[0][1] == {"prompt": "NA", "when": "", "number": 7}
    told = [message.split(" has made ")[1].partition(";")[0] for message in caplog.messages]
    assert told == ["dates or numbers of the texts of when", "dates or numbers of the texts of number"]
    with pytest.raises(UserError, match=r"neither a file .* nor a hub dataset .*'large'"):
        hub_rows(tmp_path / "json", subset="large")


def test_texts_of_a_hub_dataset_are_documents(tmp_path):
    (tmp_path / "a.txt").write_text("One,\nstill one.\n \n\n\nTwo.\n")
    (tmp_path / "b.txt").write_text("Three.")
    assert [row["text"] for _, row in hub_rows(tmp_path)] == ["One,\nstill one.", "Two.", "Three."]
    assert len(hub_rows(tmp_path, "file")) == 2


def test_cells_of_a_table(tmp_path):
    long = "x" * 200_000
    (tmp_path / "a.csv").write_text(f',prompt,user,\n0,{long}\n\n1,"a ""b""",\n')
    assert read(tmp_path / "a.csv", kind="prompts") == [{"prompt": long}, {"prompt": 'a "b"', "user": ""}]


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_a_compressed_file_that_was_cut_is_an_error(tmp_path, suffix):
    file = tmp_path / f"a.jsonl{suffix}"
    with pyarrow.output_stream(str(file)) as stream:
        stream.write(json_lines([{"prompt": f"p{i}"} for i in range(1000)]).encode())
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"a.jsonl.*: cannot be read"):
        read(file, kind="prompts")
