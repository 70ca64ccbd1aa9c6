"""Labels to and from the files of other programs: round trips, published shapes, and bad input."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from common.files import write_json, write_jsonl
from label.formats.registry import FORMATS, export_labels, import_labels
from label.formats.rows import InvalidRow, checked, content_hash, pseudonym
from learners.data.records import RankingRecord

PUBLISHED = Path(__file__).parents[3] / "shared" / "data"

ROW = {
    "prompt": "Name a fruit.",
    "responses": ["An apple.", '=1+1, "quoted",\r\nsecond line', "Ein Stück Birne — 梨"],
    "ranks": [1, 2, 1],
    "likert": [7, None, 6],
    "flags": [[], ["wrong_task", "opinion"], []],
    "all_bad": False,
    "labeler": "labeler-0a1b2c3d",
    "group": "training",
    "round": 1,
    "batch": "week-1",
    "item": "i-17",
    "comment": "two of them\nare fine",
    "active_ms": 41500,
    "guideline": 2,
    "consent": "v1",
    "policy": [
        {"model": "ppo", "version": "ppo-20", "stage": "ppo"},
        {"model": "sft", "version": "sft", "stage": "sft"},
        {"model": "ppo", "version": "ppo-10", "stage": "ppo"},
    ],
    "time": 1790000000.25,
}
CONVERSATION = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Name a stone."},
]
ROWS = [
    ROW,
    {**ROW, "ranks": [2, 3, 1], "likert": [5, 1, 6], "labeler": "labeler-ffffffff", "comment": ""},
    {
        "prompt": CONVERSATION,
        "responses": ["Quartz.", "A pear."],
        "ranks": [1, 2],
        "labeler": "labeler-0a1b2c3d",
        "item": "i-18",
        "policy": ROW["policy"][:2],
        "time": 1790000100.0,
    },
]
MAPPED = {
    "label-studio": ("likert", "flags", "labeler", "round", "batch", "item", "comment", "active_ms", "time"),
    "argilla": ("likert", "flags", "labeler", "round", "batch", "item", "comment", "active_ms"),
    "csv": ("likert", "flags", "labeler", "group", "round", "batch", "item", "comment", "active_ms", "time"),
    "oasst": ("item",),
}
"""Format -> keys beside prompt, responses and ranks that it holds."""


def mapped(rows, keys):
    """What a format should hold of rows; left out and empty are the same."""
    result = []
    for row in rows:
        kept = {"prompt": row["prompt"], "responses": row["responses"], "ranks": row["ranks"]}
        for key in keys:
            if any(row.get(key) or ()) if isinstance(row.get(key), list) else row.get(key):
                kept[key] = row[key]
        result.append(kept)
    return sorted(result, key=json.dumps)


@pytest.mark.parametrize("name", ["jsonl", "hub"])
def test_complete_formats_are_equal_to_the_byte(tmp_path, name):
    first, second = tmp_path / "first", tmp_path / "second"
    export_labels(ROWS, first, name)
    result = import_labels(first, name)
    assert result.labels == ROWS
    assert result.counts == {"read": 3, "labels": 3, "replaced characters": 0}
    export_labels(result.labels, second, name)
    files = [path.relative_to(first) for path in sorted(first.rglob("*")) if path.is_file()]
    for file in files or [Path()]:
        assert (first / file).read_bytes() == (second / file).read_bytes()
    for row in result.labels:
        assert RankingRecord.parse(row).ranks == row["ranks"], "training reads the same row"


@pytest.mark.parametrize("name", MAPPED)
def test_round_trips_keep_what_a_format_holds(tmp_path, name):
    path, again = tmp_path / "first", tmp_path / "second"
    export_labels(ROWS, path, name)
    result = import_labels(path, name)
    assert mapped(result.labels, MAPPED[name]) == mapped(ROWS, MAPPED[name])
    export_labels(result.labels, again, name)
    assert mapped(import_labels(again, name).labels, MAPPED[name]) == mapped(ROWS, MAPPED[name])


TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=30)
RESPONSES = st.lists(st.tuples(TEXT, st.integers(1, 4)), min_size=2, max_size=5)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(TEXT.filter(str.strip), RESPONSES), min_size=1, max_size=4),
    st.sampled_from(["jsonl", "label-studio", "argilla", "oasst", "csv", "hub"]),
)
def test_any_text_survives_a_round_trip(tmp_path_factory, labels, name):
    rows = []
    for number, (prompt, responses) in enumerate(labels):
        row = {"prompt": prompt, "responses": [text for text, _ in responses]}
        rows.append(
            checked({**row, "ranks": [rank for _, rank in responses], "labeler": f"labeler-{number:08x}"})
        )
    path = tmp_path_factory.mktemp("any") / "labels"
    export_labels(rows, path, name)
    keys = ("labeler",) if name != "oasst" else ()
    result = import_labels(path, name)
    if name == "oasst":
        # Without people, equal rankings of equal texts are one.
        assert {json.dumps(row) for row in mapped(result.labels, ())} == {
            json.dumps(row) for row in mapped(rows, ())
        }
        return
    assert mapped(result.labels, keys) == mapped(rows, keys)


def test_a_second_import_does_nothing_in_whichever_format(tmp_path):
    export_labels(ROWS, tmp_path / "a.jsonl", "jsonl")
    first = import_labels(tmp_path / "a.jsonl", "jsonl")
    again = import_labels(tmp_path / "a.jsonl", "jsonl", known=first.hashes)
    assert (again.labels, again.counts["duplicates"]) == ([], 3)
    other = {**ROW, "item": "another", "time": 5.0}
    assert content_hash(other) == content_hash(ROW)
    assert content_hash({**ROW, "labeler": "labeler-00000000"}) != content_hash(ROW)
    assert content_hash({**ROW, "prompt": [{"role": "user", "content": ROW["prompt"]}]}) == content_hash(ROW)
    write_jsonl(tmp_path / "b.jsonl", [ROW, other])
    assert import_labels(tmp_path / "b.jsonl", "jsonl").counts["duplicates"] == 1
    export_labels(ROWS[:2], tmp_path / "tasks.json", "label-studio")
    # Label Studio has no strength and no all_bad: neither is in these rows.
    assert import_labels(tmp_path / "tasks.json", "label-studio", known=first.hashes).labels == []


def test_a_published_label_studio_export_loads(tmp_path):
    """The shapes of docs/source/tags/ranker.md and pairwise.md: a Ranker without buckets, one with, a
    Pairwise task, people as numbers and as objects, a cancelled annotation, an untouched task."""
    items = [{"id": "llm_1", "title": "A", "body": "first"}, {"id": "llm_2", "title": "B", "body": "second"}]
    ranker = {"from_name": "rank", "to_name": "results", "type": "ranker"}

    def annotation(value, **other):
        result = [{**ranker, "value": {"ranker": value}}]
        common = {
            "id": 9,
            "completed_by": 1,
            "was_cancelled": False,
            "lead_time": 12.5,
            "ground_truth": False,
        }
        return {**common, "created_at": "2024-05-01T10:00:00.000000Z", "result": result, **other}

    pairwise = {"type": "pairwise", "value": {"selected": "right"}, "to_name": "answer1,answer2"}
    tasks = [
        {"id": 1, "data": {"prompt": "p", "items": items}, "annotations": [
            annotation({"rank": ["llm_2", "llm_1"]}),
            annotation({"place-1": ["llm_1", "llm_2"], "_": []}, completed_by={"id": 7, "email": "a@b.org"}),
            annotation({"rank": []}, was_cancelled=True),
            annotation(["llm_1", "llm_2"], ground_truth=True, completed_by=3),
        ]},
        {"id": 2, "data": {"prompt": "q", "answer1": "x", "answer2": "y"}, "annotations": [
            annotation({}, result=[pairwise])]},
        {"id": 3, "data": {"prompt": "r", "items": items}, "annotations": []},
    ]  # fmt: skip
    write_json(tmp_path / "tasks.json", tasks)
    result = import_labels(tmp_path / "tasks.json", "label-studio")
    assert [row["ranks"] for row in result.labels] == [[2, 1], [1, 1], [1, 2], [2, 1]]
    assert result.counts == {"read": 3, "labels": 4, "items": 1, "skipped": 1, "replaced characters": 0}
    first = result.labels[0]
    assert (first["active_ms"], first["time"]) == (12500, 1714557600.0)
    assert first["labeler"] == pseudonym("1")
    assert "a@b.org" not in json.dumps(result.labels)
    assert [row.get("gold") for row in result.labels] == [None, None, True, None]
    assert result.items == [{"prompt": "r", "responses": ["first", "second"]}]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"relevant_results": ["response-1"], "biased_results": ["response-2"]}, "expected buckets place-1"),
        ({"place-1": ["response-1"]}, "response-2 has no place"),
        ({"place-1": ["response-1", "nobody"]}, "'nobody' is no id"),
        ("best first", "expected a list of ids"),
    ],
)
def test_wrong_rankings_of_label_studio_name_the_task(tmp_path, value, message):
    export_labels([ROWS[2]], tmp_path / "tasks.json", "label-studio")
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    tasks[0]["annotations"][0]["result"][0]["value"]["ranker"] = value
    write_json(tmp_path / "tasks.json", tasks)
    with pytest.raises(UserError, match=rf"tasks.json, task 1: .*{message}"):
        import_labels(tmp_path / "tasks.json", "label-studio")


def test_the_interface_for_label_studio_is_written_beside_the_tasks(tmp_path):
    from xml.etree import ElementTree

    export_labels(ROWS, tmp_path / "tasks.json", "label-studio")
    view = ElementTree.parse(tmp_path / "labeling.xml").getroot()
    assert [bucket.get("name") for bucket in view.iter("Bucket")] == ["place-1", "place-2", "place-3"]
    assert {choice.get("value") for choice in view.iter("Choice")} == {"wrong_task", "opinion"}
    names = {element.get("name") for element in view.iter() if element.get("name")}
    for task in json.loads((tmp_path / "tasks.json").read_text()):
        for annotation in task["annotations"]:
            assert {result["from_name"] for result in annotation["result"]} <= names


def test_argilla_counts_only_what_was_submitted(tmp_path):
    """The columns in which Argilla 2 exports a data set to the hub."""
    record = {
        "id": "1",
        "status": "completed",
        "prompt": "p",
        "response-1": "a",
        "response-2": "b",
        "ranking.responses": [
            [{"value": "response-2", "rank": 1}, {"value": "response-1", "rank": 2}],
            [{"value": "response-1", "rank": 1}, {"value": "response-2", "rank": 1}],
            [{"value": "response-1", "rank": 1}],
        ],
        "ranking.responses.users": ["u1", "u2", "u3"],
        "ranking.responses.status": ["submitted", "discarded", "draft"],
    }
    waiting = {"id": "2", "prompt": "q", "response-1": "a", "response-2": "b", "ranking.responses": None}
    write_json(tmp_path / "records.json", [record, waiting])
    result = import_labels(tmp_path, "argilla")
    assert [(row["ranks"], row["labeler"]) for row in result.labels] == [([2, 1], pseudonym("u1"))]
    assert (result.counts["skipped"], result.counts["draft"], result.counts["items"]) == (1, 1, 1)
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record, waiting]), tmp_path / "train.parquet")
    assert import_labels(tmp_path / "train.parquet", "argilla").labels == result.labels
    record["ranking.responses.status"][2] = "submitted"
    write_json(tmp_path / "records.json", [record])
    with pytest.raises(UserError, match=r"record 1: key 'ranking.responses': response-2 has no rank"):
        import_labels(tmp_path, "argilla")


def test_settings_of_argilla_fit_its_records(tmp_path):
    export_labels(ROWS, tmp_path, "argilla")
    settings = json.loads((tmp_path / "settings.json").read_text())
    fields = [field["name"] for field in settings["fields"]]
    questions = [question["name"] for question in settings["questions"]]
    for record in json.loads((tmp_path / "records.json").read_text()):
        assert {key for key in record if key.startswith("response-")} <= set(fields)
        assert {key.split(".")[0] for key in record if "." in key} <= set(questions)


def test_the_hub_folder_loads_with_datasets(tmp_path):
    import datasets

    export_labels([*ROWS, {"prompt": "p", "responses": ["a", "b"]}], tmp_path / "labels", "hub")
    cache = str(tmp_path / "cache")
    pairs = datasets.load_dataset(str(tmp_path / "labels"), "pairs", split="train", cache_dir=cache)
    # Of three responses with one tie, of three without, and of two.
    assert len(pairs) == 2 + 3 + 1
    assert pairs[0]["prompt"] == [{"role": "user", "content": "Name a fruit."}]
    assert pairs[0]["chosen"][0]["content"] == "An apple."
    assert pairs[0]["margin"] == 1
    rankings = datasets.load_dataset(str(tmp_path / "labels"), "rankings", split="train", cache_dir=cache)
    assert rankings["ranks"][:2] == [[1, 2, 1], [2, 3, 1]]
    card = (tmp_path / "labels" / "README.md").read_text()
    assert "3 rankings of 2 prompts by 2 people, 6 pairs" in card
    assert "pair agreement without ties: 1.000, 1 prompts" in card
    assert "- guideline: 2" in card


def test_anthropic_pairs_leave_out_what_has_no_place_in_them(tmp_path):
    system = {**ROWS[2], "prompt": [{"role": "system", "content": "Be kind."}, *CONVERSATION]}
    marked = {**ROWS[2], "responses": ["a\n\nHuman: b", "c"]}
    rows = [*ROWS, system, marked, {"prompt": "p", "responses": ["a", "b"]}]
    counts = export_labels(rows, tmp_path / "pairs.jsonl", "anthropic")
    assert counts == {"pairs": 6, "ties": 1, "not representable": 2, "without ranks": 1}
    result = import_labels(tmp_path / "pairs.jsonl", "anthropic")
    assert all(row["ranks"] == [1, 2] for row in result.labels)
    assert result.labels[-1]["prompt"] == CONVERSATION
    assert result.labels[0]["responses"] == [ROW["responses"][0], ROW["responses"][1]]


def test_battles_keep_both_models_and_ties(tmp_path):
    rows = [ROWS[2], {**ROWS[2], "ranks": [1, 1], "all_bad": True}, {**ROWS[2], "ranks": [2, 1]}]
    counts = export_labels([*rows, {**ROWS[2], "policy": None}], tmp_path / "battles.jsonl", "arena")
    assert counts == {"battles": 3, "without ranks or policies": 1}
    battles = [json.loads(line) for line in (tmp_path / "battles.jsonl").read_text().splitlines()]
    assert [battle["winner"] for battle in battles] == ["model_a", "tie (bothbad)", "model_b"]
    assert battles[0]["model_a"] == "ppo ppo-20"
    assert battles[0]["turn"] == 2
    labels = import_labels(tmp_path / "battles.jsonl", "arena").labels
    assert [row["ranks"] for row in labels] == [[1, 2], [1, 1], [2, 1]]
    assert [row.get("all_bad") for row in labels] == [None, True, None]
    assert labels[0]["policy"][1] == {"model": "sft", "version": "sft"}
    battles[0]["conversation_b"][0]["content"] = "something else"
    write_json(tmp_path / "list.json", battles)
    with pytest.raises(UserError, match="battle 1: keys 'conversation_a' and '_b'"):
        import_labels(tmp_path / "list.json", "arena")


def test_published_trees_of_open_assistant_load(tmp_path):
    path = PUBLISHED / "oasst-rankings" / "en_100_tree.jsonl"
    if not path.exists():
        pytest.skip(f"{path}: not there")
    result = import_labels(path, "oasst")
    # SOURCE.md: 212 sets of replies with human ranks, 99 under the first message.
    assert result.counts["labels"] + result.counts["duplicates"] == 212
    assert sum(isinstance(row["prompt"], str) for row in result.labels) == 99
    assert {len(row["responses"]) for row in result.labels} <= set(range(2, 10))
    for row in result.labels:
        assert RankingRecord.parse(row).ranks == row["ranks"]
    export_labels(result.labels, tmp_path / "trees.jsonl", "oasst")
    again = import_labels(tmp_path / "trees.jsonl", "oasst")
    assert mapped(again.labels, ("item",)) == mapped(result.labels, ("item",))


@pytest.mark.parametrize(("name", "count", "invalid"), [("helpful", 2352, 9), ("harmless", 1168, 2)])
def test_published_pairs_load(tmp_path, name, count, invalid):
    path = PUBLISHED / "preferences" / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"{path}: not there")
    # The invalid ones differ before the last answer.
    result = import_labels(path, "anthropic", max_invalid=invalid)
    assert (result.counts["invalid"], result.counts["labels"]) == (invalid, count - invalid)
    export_labels(result.labels, tmp_path / "pairs.jsonl", "anthropic")
    assert import_labels(tmp_path / "pairs.jsonl", "anthropic").hashes == result.hashes


BAD = [
    ('{"prompt": "p", "responses": ["a", "b"], "ranks": [1', "not JSON"),
    ("[1, 2]", "expected a JSON object"),
    ('{"prompt": "", "responses": ["a", "b"]}', "key 'prompt': expected a text that is not empty"),
    ('{"prompt": [{"role": "bot", "content": "x"}], "responses": ["a", "b"]}', r"key 'prompt\[0\].role'"),
    ('{"prompt": [{"role": "assistant", "content": "x"}], "responses": ["a", "b"]}', "must be the user's"),
    ('{"prompt": "p", "responses": ["a"]}', "at least two texts"),
    ('{"prompt": "p", "responses": ["a", 5]}', r"key 'responses\[1\]': expected a text"),
    ('{"prompt": "p", "responses": ["a", "b\\u0000"]}', "NUL"),
    ('{"prompt": "p", "responses": ["a", "b"], "ranks": [1]}', "expected 2 whole numbers"),
    ('{"prompt": "p", "responses": ["a", "b"], "ranks": [0, 1]}', "from 1"),
    ('{"prompt": "p", "responses": ["a", "b"], "ranks": [1, true]}', "whole numbers"),
    ('{"prompt": "p", "responses": ["a", "b"], "ranks": [1, 2], "likert": [8, 1]}', "from 1 to 7"),
    ('{"prompt": "p", "responses": ["a", "b"], "ranks": [1, 2], "likert": [1]}', "expected 2 ratings"),
]


@pytest.mark.parametrize(("line", "message"), BAD)
def test_bad_rows_are_refused_by_file_and_line(tmp_path, line, message):
    path = tmp_path / "labels.jsonl"
    path.write_text(json.dumps(ROW) + "\n\n" + line + "\n")
    with pytest.raises(UserError, match=rf"labels.jsonl, line 3: .*{message}"):
        import_labels(path, "jsonl")
    result = import_labels(path, "jsonl", max_invalid=1)
    assert (result.counts["labels"], result.counts["invalid"]) == (1, 1)


def test_gaps_in_ranks_are_closed_and_halves_of_surrogate_pairs_replaced(tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text('{"prompt": "p \\ud83d", "responses": ["a", "b", "c"], "ranks": [2, 7, 2]}\n')
    result = import_labels(path, "jsonl")
    assert result.labels == [{"prompt": "p �", "responses": ["a", "b", "c"], "ranks": [1, 2, 1]}]
    assert result.counts["replaced characters"] == 1


def test_wrong_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        import_labels(tmp_path / "none.jsonl", "jsonl")
    with pytest.raises(UserError, match="unknown; expected one of jsonl, label-studio"):
        import_labels(tmp_path, "excel")
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "ü"}'.encode("latin-1"))
    for name in ("jsonl", "arena", "csv"):
        with pytest.raises(UserError, match="UTF-8"):
            import_labels(tmp_path / "latin.jsonl", name)
    (tmp_path / "x.csv").write_text("prompt,answer\np,a\n")
    with pytest.raises(UserError, match="no column label, response; expected label, item"):
        import_labels(tmp_path / "x.csv", "csv")
    (tmp_path / "y.csv").write_text("label,prompt,response,rank\n1,p,a,1\n1,p,b,second\n")
    with pytest.raises(UserError, match=r"y\.csv, line 2: column 'rank': expected a whole number"):
        import_labels(tmp_path / "y.csv", "csv")
    with pytest.raises(InvalidRow):
        checked({"prompt": "p"})


def test_nothing_is_half_written(tmp_path):
    """A row that cannot be written leaves what was there."""
    # JSONL holds whatever it is given.
    for name in FORMATS.keys() - {"jsonl"}:
        path = tmp_path / name
        export_labels(ROWS, path, name)
        before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} or path.read_bytes()
        with pytest.raises((KeyError, TypeError)):
            export_labels([*ROWS, {"ranks": [1, 2], "policy": [{}, {}]}], path, name)
        after = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} or path.read_bytes()
        assert after == before


def test_people_stay_pseudonyms():
    assert pseudonym("labeler-0a1b2c3d") == "labeler-0a1b2c3d"
    assert pseudonym("gone-0a1b2c3d") == "gone-0a1b2c3d"
    assert pseudonym("ann@example.org") != pseudonym("ann@example.org", salt="secret")
    assert pseudonym(pseudonym("ann@example.org")) == pseudonym("ann@example.org")
