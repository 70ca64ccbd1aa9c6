"""`hero label import`, `export --format`, `gold` and `stats`, on a workplace."""

import time

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from cluster.cli import app as program
from common.files import read_jsonl, write_jsonl
from label.export import export
from label.importing import import_file
from label.store import people
from label.store.items import BatchSpec, add_items
from label.store.tables import item
from label.workplace import Workplace
from tests.label.conftest import add, item_rows
from tests.label.test_label_cli import hero

KEYS = (
    "prompt",
    "responses",
    "ranks",
    "likert",
    "flags",
    "strength",
    "order",
    "all_bad",
    "active_ms",
    "time",
)


def label_rows():
    """Two people on two prompts, as an export of this program has them."""
    rows = []
    for i, row in enumerate(item_rows(2, 2)):
        for who in (0, 1):
            rows.append(
                {
                    **row,
                    "prompt": f"Prompt {i}?",
                    "ranks": [1 + who, 2 - who],
                    "likert": [6 - who, 3],
                    "flags": [["opinion"], []],
                    "all_bad": False,
                    "strength": 2 - 4 * who,
                    "order": [1, 0] if who else [0, 1],
                    "labeler": f"labeler-{who:08x}",
                    "active_ms": 5000 + who,
                    "time": 1_700_000_000.5 + i,
                    "comment": "fine",
                }
            )
    return rows


def content(rows, keys=KEYS):
    return sorted(([row[key] for key in keys] for row in rows), key=str)


def admitted_export(workplace):
    with workplace.database.write() as connection:
        for row in people.list_people(connection):
            if row["state"] == "screening":
                people.set_state(connection, row["id"], "admitted", "owner", "known")
        return export(connection)


def test_labels_of_this_program_come_back_as_they_left_and_once(workplace, tmp_path):
    file = tmp_path / "labels.jsonl"
    write_jsonl(file, label_rows())
    counts = import_file(workplace.database, file, "jsonl", BatchSpec("old", "rank"))
    assert counts["labels stored"] == 4
    with workplace.database.read() as connection:
        held = export(connection)
    assert (held.rankings, held.held_back) == ([], 4), "an import admits nobody"
    rows = admitted_export(workplace).rankings
    assert content(rows) == content(label_rows())
    assert {row["labeler"] for row in rows} == {"labeler-00000000", "labeler-00000001"}
    again = import_file(workplace.database, file, "jsonl", BatchSpec("old", "rank"))
    assert (again["duplicates"], again["labels stored"]) == (4, 0)
    changed = [{**label_rows()[0], "ranks": [2, 1], "strength": -2}]
    write_jsonl(file, changed)
    second = import_file(workplace.database, file, "jsonl", BatchSpec("old", "rank"))
    assert second["second labels of a person"] == 1
    with workplace.database.read() as connection:
        assert [row.labels for row in connection.execute(sa.select(item))] == [2, 2]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("name", ["label-studio", "argilla", "csv", "hub"])
def test_exports_of_each_format_are_imported_with_what_the_format_holds(tmp_path, name, database_url):
    run, other = tmp_path / "run", tmp_path / "other"
    write_jsonl(tmp_path / "labels.jsonl", label_rows())
    assert "4 labels stored" in hero("import", run, tmp_path / "labels.jsonl", "--batch", "old")
    assert "4 labels held back" in hero("export", run)
    for who in ("labeler-00000000", "labeler-00000001"):
        hero("admit", run, who, "--why", "known")
    hero("export", run, "--name", "one", "--format", name)
    suffix = {"label-studio": "-label-studio/tasks.json", "csv": ".csv"}.get(name, f"-{name}")
    path = run / "label" / "exports" / f"one{suffix}"
    hero("import", other, path, "--batch", "old", "--format", name)
    keys = ("prompt", "responses", "ranks", "likert", "flags")
    workplace = Workplace.open(other)
    rows = admitted_export(workplace).rankings
    workplace.database.close()
    assert content(rows, keys) == content(read_jsonl(run / "label" / "exports" / "one.jsonl"), keys)


def test_wrong_files_and_formats_are_named(tmp_path):
    def refused(*arguments):
        result = CliRunner().invoke(program, ["label", "import", str(tmp_path / "run"), *arguments])
        assert result.exit_code != 0
        return str(result.exception) + result.output

    write_jsonl(tmp_path / "bad.jsonl", [{"prompt": "x", "responses": ["a", "b"], "ranks": [1]}])
    assert "bad.jsonl" in refused(str(tmp_path / "bad.jsonl"), "--batch", "b")
    assert "expected one of" in refused(str(tmp_path / "bad.jsonl"), "--batch", "b", "--format", "xml")


def test_gold_items_and_figures_on_the_command_line(tmp_path):
    run = tmp_path / "run"
    write_jsonl(tmp_path / "labels.jsonl", label_rows())
    hero("import", run, tmp_path / "labels.jsonl", "--batch", "old")
    for who in ("labeler-00000000", "labeler-00000001"):
        hero("admit", run, who)
    rows = [{**row, "gold": {"ranks": [1, 2, 3], "explanation": "so"}} for row in item_rows(1)]
    write_jsonl(tmp_path / "gold.jsonl", rows)
    assert "1 gold items added" in hero("gold", run, "--add", tmp_path / "gold.jsonl")
    listed = hero("gold", run, "--add", tmp_path / "gold.jsonl")
    assert "0 gold items added, 1 known already" in listed
    assert "in work" in listed
    figures = hero("stats", run)
    assert "4 rankings by 2 people" in figures
    assert "agreement" in figures
    assert "tiny ppo-0" in figures


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_many_items_are_imported_within_seconds(workplace, count):
    """10,000 items of six responses in under 20 s."""
    rows = ({**row, "prompt": f"{row['prompt']} {i}"} for i, row in enumerate(item_rows(count, 6)))
    started = time.monotonic()
    added = add_items(workplace.database, BatchSpec("many", "rank"), rows)
    seconds = time.monotonic() - started
    assert added.added == count
    print(f"{count} items in {seconds:.1f} s")
    assert seconds < 20 * max(1, count / 10_000) * 3


def test_ground_truth_of_label_studio_becomes_gold(workplace, tmp_path):
    rows = [{**row, "gold": True, "ranks": [1, 2, 3]} for row in item_rows(1)]
    write_jsonl(tmp_path / "labels.jsonl", rows)
    counts = import_file(workplace.database, tmp_path / "labels.jsonl", "jsonl", BatchSpec("old", "rank"))
    assert counts["gold"] == 1
    add(workplace, 1)
    assert admitted_export(workplace).rankings == []
