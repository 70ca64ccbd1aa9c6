"""Rounds from planning to promotion, with the real workplace, labelers over HTTP, gate and pointer; only the
stages are `tests.rounds_stages`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cluster.cli_rounds import app
from cluster.config_loader import load_config
from cluster.rounds.controller import Rounds, Waiting
from cluster.rounds.report import print_rounds
from cluster.rounds.requests import close_round, hold_round, promote_round, resume_rounds
from cluster.rounds.state import STATES
from common.errors import RunStoppedError, UserError
from common.files import read_json, read_jsonl, write_jsonl
from common.run_paths import RunPaths
from common.stop_request import request_stop
from label.store.items import responses_of
from label.store.tables import item, label
from label.workplace import Workplace, read_settings
from serve.versions import current_policy, list_promotions
from tests.rounds_stages import run_stages
from tests.runs import environment

SETTINGS = [
    "stages=[sft]",
    "rounds.prompts=20",
    "rounds.responses=4",
    "rounds.previous=2",
    "rounds.labelers=3",
    "rounds.overlap=0.5",
    "rounds.error_rate=0",
    "rounds.calibration=2",
    "rounds.comparison_share=0.3",
    "rounds.gate.comparisons=100",
    "rounds.gate.flag_rise=0.05",
    "rounds.gate.anchor=10",
    "label.calibration_share=0",
]
REACHED = STATES[:-1]
KILLS = [state + "+" * (number % 2) for number, state in enumerate(REACHED)]
ALL_KILLS = [kill for state in REACHED for kill in (f"{state}+", state)]


def settings_of(root: Path, *overrides: str) -> list[str]:
    prompts = root.parent / "prompts.jsonl"
    if not prompts.exists():
        row = {"task": "color", "subject": "snow", "answers": ["white"]}
        write_jsonl(prompts, [{"prompt": f"Color of snow, {i}?", **row} for i in range(500)])
    return [f"run_dir={root}", f"data.prompts={prompts}", *SETTINGS, *overrides]


def go(root: Path, *overrides: str, **arguments) -> list[str]:
    """Runs the rounds in this process; returns what they say."""
    said: list[str] = []
    Rounds(load_config(None, settings_of(root, *overrides)), run_stages, said.append, **arguments).go()
    return said


def kill(root: Path, where: str) -> None:
    """Runs a round in a process that ends itself with SIGKILL in a state."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.rounds_stages", os.devnull, *settings_of(root, "rounds.count=1")],
        env={**environment(), "HERO_TEST_KILL": where},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == -9, f"{where}: {result.stdout}{result.stderr}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two rounds, undisturbed."""
    root = tmp_path_factory.mktemp("rounds") / "run"
    go(root)
    return RunPaths(root)


def without_people(rows):
    """What does not depend on who was asked first, and when."""
    kept = ("prompt", "responses", "ended", "ranks", "policy", "likert")
    return [{key: row[key] for key in kept if key in row} for row in rows]


def comparable(state):
    """round.json without the digests of files that hold times and pseudonyms, and without hours."""
    values = {key: value for key, value in state.items() if key != "inputs"}
    values["labels"] = {key: value for key, value in state["labels"].items() if key != "person_hours"}
    values["gate"] = {key: value for key, value in state["gate"].items() if key != "person_hours"}
    return values


def test_better_policies_are_promoted_round_after_round(finished):
    first, second = (read_json(finished.round(number).state) for number in (1, 2))
    assert (first["state"], second["state"]) == ("promoted", "promoted")
    assert current_policy(finished.root).name == "round-2"
    assert [row["to"] for row in list_promotions(finished.root)] == ["round-1", "round-2"]
    assert first["policies"] == ["sft-0"]
    assert second["policies"] == ["round-1", "sft-0"]
    assert (first["gate"]["against"], second["gate"]["against"]) == ("sft-0", "round-1")
    assert first["gate"]["win_rate"]["n"] == 100
    assert second["anchor"]["n"] == 10
    # The rankings of round 2 compare its two policies too.
    assert second["free_comparison"]["of"] == "round-1"
    assert second["free_comparison"]["value"] > 0.5
    assert first["free_comparison"] is None


def test_every_sampled_response_has_its_policy_and_its_rank(finished):
    rows = read_jsonl(finished.round(2).round_rankings)
    items = read_jsonl(finished.round(2).items)
    assert len({row["prompt"] for row in rows}) == len(items) == 20
    # Half of the prompts are ranked by a second person.
    assert len(rows) == 30
    for row in rows:
        assert [one["version"] for one in row["policy"]] == ["round-1"] * 2 + ["sft-0"] * 2
        assert len(row["ranks"]) == len(row["responses"]) == 4
        assert row["round"] == 2


def test_nothing_that_is_kept_from_training_is_trained_on(finished):
    kept, trained = set(), set()
    for paths in finished.started_rounds():
        rows = read_jsonl(paths.candidates)
        trained |= {row["prompt"] for row in read_jsonl(paths.training_prompts)}
        kept |= {row["prompt"] for row in rows if row["rounds_use"] != "training"}
        kept |= {row["prompt"] for row in read_jsonl(paths.comparison_prompts)}
    assert kept
    assert trained
    assert not kept & trained


def test_people_are_never_asked_about_equal_responses_and_sides_are_drawn(finished):
    place = Workplace(finished.root, read_settings(finished.root))
    with place.database.read() as connection:
        ids = [row.id for row in connection.execute(item.select())]
        for responses in responses_of(connection, ids).values():
            assert len({(one.text, one.ended) for one in responses}) == len(responses)
        pairs = [row for row in connection.execute(label.select()) if row.kind == "pair"]
    place.database.close()
    assert len(pairs) > 50


def test_the_same_command_again_changes_nothing(finished):
    files = [path for path in finished.rounds.rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    assert go(finished.root) == []
    assert {path: path.read_bytes() for path in files} == before


def test_the_table_shows_every_round(finished):
    console = Console(width=200, record=True)
    print_rounds(finished.root, console)
    shown = console.export_text()
    for text in ("round 1", "round 2", "promoted", "over sft-0", "over round-1", "30 by 3"):
        assert text in shown


@pytest.mark.parametrize("kills", [KILLS, pytest.param(ALL_KILLS, marks=pytest.mark.slow)], ids=["8", "16"])
def test_killed_in_every_state_of_a_round_it_ends_the_same(finished, tmp_path, kills):
    root = tmp_path / "run"
    # Just before a state is written down, when its files are there, or just after.
    for where in kills:
        kill(root, where)
    go(root, "rounds.count=1")
    killed, whole = RunPaths(root).round(1), finished.round(1)
    assert comparable(read_json(killed.state)) == comparable(read_json(whole.state))
    for name in ("candidates", "training_prompts", "comparison_prompts", "items", "comparison_items"):
        assert getattr(killed, name).read_bytes() == getattr(whole, name).read_bytes(), name
    ranked, expected = read_jsonl(killed.round_rankings), read_jsonl(whole.round_rankings)
    assert without_people(ranked) == without_people(expected)
    log = [row["key"] for row in read_jsonl(RunPaths(root).rounds_log)]
    assert log == [f"1:{state}" for state in REACHED]


def test_a_policy_trained_on_flipped_labels_is_held_and_never_served(tmp_path, monkeypatch):
    monkeypatch.setenv("HERO_TEST_FLIPPED", "1")
    root = tmp_path / "run"
    go(root)
    run = RunPaths(root)
    states = [read_json(paths.state) for paths in run.started_rounds()]
    assert [state["state"] for state in states] == ["held", "held"]
    assert "its lower end is not over 0.5" in states[0]["decision"]
    # Round 2 learned from round 1's policy all the same, and was compared with what is served.
    assert states[1]["policies"] == ["round-1", "sft-0"]
    assert states[1]["gate"]["against"] == "sft-0"
    assert not run.current.exists()
    assert not list_promotions(root)
    # A person may decide otherwise, and it is written down.
    promote_round(root, "a test")
    assert current_policy(root).name == "round-2"
    assert "by hand" in read_json(run.round(2).state)["decision"]
    with pytest.raises(UserError, match="round 2 is promoted; only a policy that was held"):
        promote_round(root, "again")


def test_without_people_it_ends_and_says_what_is_missing(tmp_path):
    root = tmp_path / "run"
    real = "rounds.labelers=0"
    settings = [one for one in settings_of(root) if not one.startswith(("rounds.error", "rounds.labelers"))]
    rounds = Rounds(load_config(None, [*settings, real]), run_stages, print, wait=False)
    with pytest.raises(Waiting, match="round 1: 0 of 30 rankings; people label on `hero label serve"):
        rounds.go()
    assert read_json(RunPaths(root).round(1).state)["state"] == "labeling"
    # Without one label there is nothing to close.
    close_round(root, "enough")
    with pytest.raises(Waiting):
        rounds.go()


def test_settings_of_a_round_at_work_cannot_be_changed_and_the_cord_stops_it(tmp_path):
    root = tmp_path / "run"
    kill(root, "planned")
    with pytest.raises(
        UserError, match=r"planned with other settings: rounds\.gate\.comparisons 100 .now 90"
    ):
        go(root, "rounds.gate.comparisons=90")
    request_stop(RunPaths(root), "labeler-1", "it insults people")
    with pytest.raises(RunStoppedError, match="stopped by labeler-1: it insults people"):
        go(root)
    assert "stopped by labeler-1" in resume_rounds(root)
    with pytest.raises(UserError, match="nobody has asked to stop"):
        resume_rounds(root)
    hold_round(root, "not this one")
    go(root, "rounds.count=1")
    state = read_json(RunPaths(root).round(1).state)
    assert state["state"] == "held"
    assert state["decision"].endswith("not this one")
    log = [row["state"] for row in read_jsonl(RunPaths(root).rounds_log)]
    assert {"hold", "resumed"} <= set(log)


def test_too_few_prompts_are_refused_before_anything_is_trained(tmp_path):
    root = tmp_path / "run"
    with pytest.raises(UserError, match="are for comparison, and a round needs 400; give more prompts"):
        go(root, "rounds.gate.comparisons=400")
    assert not RunPaths(root).stage("sft").model.exists()


def test_a_config_may_stand_right_after_the_command():
    result = CliRunner().invoke(app, ["missing.yaml"])
    assert "missing.yaml: no such config file" in str(result.exception)
    assert CliRunner().invoke(app, ["status", "missing"]).exception
