"""What people give in a round, and what comes too late for it."""

import pytest
from rich.console import Console

from cluster.config_loader import load_config
from cluster.rounds.controller import Rounds, Waiting
from cluster.rounds.report import print_rounds
from cluster.rounds.requests import close_round
from common.files import read_json, read_jsonl
from common.run_paths import RunPaths
from label.api.rounds import rounds
from label.errors import Forbidden
from label.store import assignments, labels
from label.store.late import LATE
from label.submission import Submission
from label.workplace import Workplace, read_settings
from tests.cluster.test_rounds import settings_of
from tests.label.conftest import admit
from tests.rounds_stages import run_stages


@pytest.fixture
def run(tmp_path):
    return RunPaths(tmp_path / "run")


@pytest.fixture
def place(run):
    until_people_are_needed(run)
    place = Workplace(run.root, read_settings(run.root))
    yield place
    place.database.close()


def until_people_are_needed(run, *overrides):
    """Runs as far as it goes without people; returns what it waits for."""
    by_people = [
        one for one in settings_of(run.root) if not one.startswith(("rounds.error", "rounds.labelers"))
    ]
    config = load_config(None, [*by_people, "rounds.overlap=0", "rounds.calibration=0", *overrides])
    with pytest.raises(Waiting) as waiting:
        Rounds(config, run_stages, lambda line: None, wait=False).go()
    return str(waiting.value)


def take(place, who):
    with place.database.write() as connection:
        rng = assignments.system_rng()
        return assignments.next_assignment(connection, place.settings, who, ["rank", "pair"], rng)


def send(place, who, task, flags=()):
    """Good answers first; `flags` of every bad one."""
    ranks, ratings = {}, {}
    for one in task["responses"]:
        is_good = one["text"].startswith("The color")
        ranks[one["id"]] = 1 if is_good else 2
        ratings[one["id"]] = {"likert": 6 if is_good else 2, "flags": [] if is_good else list(flags)}
    given = {"ranks": labels_without_gaps(ranks), "ratings": {} if task["kind"] == "pair" else ratings}
    with place.database.write() as connection:
        key = f"key-{task['assignment']}"
        return labels.submit(
            connection, who, task["assignment"], key, Submission.model_validate(given), extra=False
        )


def labels_without_gaps(ranks):
    return ranks if 1 in ranks.values() else dict.fromkeys(ranks, 1)


def work(place, who, flagged=()):
    """Labels until nothing waits; objects to bad answers to the prompts `flagged`."""
    while task := take(place, who):
        send(place, who, task, ["wrong_task"] if task["prompt"] in flagged else ())


def test_what_comes_after_a_round_was_closed_goes_to_the_next_one(run, place):
    ada, bob = admit(place, "Ada"), admit(place, "Bob")
    late = take(place, ada)
    work(place, bob)
    close_round(run.root, "enough")
    assert "blind comparisons" in until_people_are_needed(run)
    first = run.round(1).round_rankings.read_bytes()
    assert len(first.splitlines()) == 19
    # The page has the item still open, and what was done is not lost.
    assert take(place, ada)["assignment"] == late["assignment"]
    answer = send(place, ada, late)
    assert (answer["notes"], answer["extra"]) == ([LATE], False)
    assert take(place, ada)["kind"] == "pair"
    work(place, ada)
    assert "round 2: 0 of 20 rankings" in until_people_are_needed(run)
    work(place, bob)
    until_people_are_needed(run)
    assert run.round(1).round_rankings.read_bytes() == first
    rows = read_jsonl(run.round(2).round_rankings)
    assert [row["round"] for row in rows] == [2] * 20 + [1]
    assert (rows[-1]["prompt"], rows[-1]["label"]) == (late["prompt"], answer["label"])
    assert len(rows[-1]["responses"]) == 4
    state = read_json(run.round(2).state)
    assert (state["labels"]["rankings"], state["labels"]["late"]) == (20, 1)
    # Not a comparison of policies of this round.
    assert state["free_comparison"]["of"] == "round-1"
    console = Console(width=200, record=True)
    print_rounds(run.root, console)
    assert "20 by 1, 0.0 h, 1 late for earlier rounds" in console.export_text()


def test_too_few_labels_at_the_deadline_are_told_and_nothing_is_trained(run, place):
    until_late = ("rounds.deadline_h=1e-6", "rounds.min_share=0.5")
    ada = admit(place)
    for _ in range(9):
        send(place, ada, take(place, ada))
    told = "stalled: the deadline has passed with less than 50% of them"
    assert told in until_people_are_needed(run, *until_late)
    console = Console(width=200, record=True)
    print_rounds(run.root, console)
    assert "9 of 20 labels are there; stalled: the deadline has passed" in console.export_text()
    assert rounds(None, place)["rounds"][0]["stalled"]
    send(place, ada, take(place, ada))
    assert "blind comparisons" in until_people_are_needed(run, *until_late)
    assert len(read_jsonl(run.round(1).round_rankings)) == 10


def test_comparisons_are_closed_with_their_gate(run, place):
    ada, bob = admit(place, "Ada"), admit(place, "Bob")
    work(place, bob)
    until_people_are_needed(run)
    late = take(place, ada)
    work(place, bob)
    close_round(run.root, "enough")
    assert "round 2" in until_people_are_needed(run)
    assert late["kind"] == "pair"
    with pytest.raises(Forbidden, match="this batch is closed"):
        send(place, ada, late)


def test_the_reward_model_is_measured_apart_on_what_people_flagged(run, place):
    items = read_jsonl(run.round(1).items)
    flagged = {row["prompt"] for row in items if any(not text.startswith("The") for text in row["responses"])}
    flagged = set(sorted(flagged)[:5])
    work(place, admit(place), flagged)
    until_people_are_needed(run)
    rows = read_jsonl(run.round(1).round_rankings)
    assert {row["prompt"] for row in rows if row["flagged"] == "yes"} == flagged
    assert len([row for row in rows if row["flagged"] == "no"]) == 15
    config = load_config(run.round(1).plan)
    assert config.reward_model.accuracy_by == ["round", "group", "flagged"]
