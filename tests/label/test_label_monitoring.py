"""Quality wired into the work: pauses with their reason, labels held back, gold, reviews, team figures."""

import json
import random

import numpy as np
import pytest
import sqlalchemy as sa
from scipy.stats import chisquare

from label.api.app import create_app
from label.export import export
from label.monitoring import is_look_due, judgments, last_decision, look
from label.server import serving
from label.simulate import make_people
from label.simulated_team import admit_all
from label.statistics.proportions import wilson
from label.store import assignments, labels, people
from label.store.screening_tables import quality
from label.store.tables import person
from label.submission import Submission
from tests.label.conftest import BOTH, add, address_of, admit, item_rows, submission
from tests.label.test_label_api import error, send, sign_in, take

CAREFUL = {"every": 10, "items": 10, "gold_items": 5}


@pytest.fixture
def database_url(request):
    return address_of(request)


def in_shown_order(client, count):
    """Labels in the order shown until the workplace stops the person; returns the refusal or None."""
    for number in range(count):
        answer = client.post("/api/next", json={})
        if answer.status_code == 403:
            return answer.json()["error"]
        assert send(client, answer.json(), f"submit-{number}").status_code == 200
    return None


@BOTH
def test_keeping_the_order_shown_pauses_with_the_reason_and_holds_the_labels_back(make_workplace):
    app = create_app(make_workplace(pause=CAREFUL))
    ada, owner = sign_in(app), sign_in(app, "owner", "Olga")
    add(app.state.workplace, 60)
    refusal = in_shown_order(ada, 40)
    assert refusal["code"] == "state_paused"
    assert "the same ranking in 100% of items: ranks in the order shown" in refusal["why"]
    assert "your labels are kept" in ada.get("/api/me").json()["why"]
    given = ada.get("/api/me").json()["labels"]
    assert given in (10, 20)
    answer = owner.get("/api/export")
    assert (answer.text, answer.headers["x-held-back"]) == ("", str(given))
    (row,) = [one for one in owner.get("/api/people").json()["people"] if one["id"] == ada.person]
    assert row["quality"]["pause"] is True
    assert any(finding["code"] == "straight_lining" for finding in row["quality"]["findings"])
    decision = owner.get(f"/api/people/{ada.person}").json()["decisions"][0]
    assert (decision["what"], decision["by_person"]) == ("paused", "system")
    assert decision["evidence"]["findings"]
    # Reversible: the owner admits, the labels count, and the figures begin anew.
    change = {"state": "admitted", "why": "talked to Ada"}
    assert owner.post(f"/api/people/{ada.person}/state", json=change).status_code == 200
    assert len(owner.get("/api/export").text.splitlines()) == given
    assert send(ada, take(ada), "submit-later").status_code == 200
    assert take(ada)


def test_leaving_does_not_release_labels_that_are_held_back(workplace):
    ada = admit(workplace)
    add(workplace, 1)
    with workplace.database.write() as connection:
        task = assignments.next_assignment(
            connection, workplace.settings, ada, ("rank",), assignments.system_rng()
        )
        given = Submission.model_validate(submission(task))
        labels.submit(connection, ada, task["assignment"], "key-1", given)
        people.set_state(connection, ada, "paused", "system", "too fast")
        people.set_state(connection, ada, "left", ada, "you left")
        assert export(connection).held_back == 1
        people.set_state(connection, ada, "admitted", "owner", "fine")
        people.set_state(connection, ada, "left", ada, "you left")
        assert len(export(connection).rankings) == 1
        assert last_decision(connection, ada) > 0


def test_a_person_in_doubt_gets_more_gold_items_and_a_wrong_one_is_paused(make_workplace):
    workplace = make_workplace(pause={**CAREFUL, "every": 5}, gold_share=0.1)
    rows = [{**row, "gold": {"ranks": [1, 2, 3], "explanation": "x"}} for row in item_rows(30)]
    add(workplace, rows=rows, name="gold", purpose="gold")
    ada = admit(workplace)
    # All items are gold here: the share is drawn, and only these wait.
    workplace.settings = workplace.settings.model_copy(update={"gold_share": 0.999})
    rng = random.Random(1)
    for number in range(30):
        with workplace.database.write() as connection:
            state = connection.execute(sa.select(person.c.state).where(person.c.id == ada)).scalar()
            if state == "paused":
                break
            task = assignments.next_assignment(connection, workplace.settings, ada, ("rank",), rng)
            if task is None:
                continue
            # The worst first, whatever the order shown.
            places = {f"Answer {k}": 3 - k for k in range(3)}
            ranks = [places[one["text"][:8]] for one in task["responses"]]
            given = Submission.model_validate(submission(task, ranks))
            labels.submit(connection, ada, task["assignment"], f"key-{number}", given)
        if is_look_due(workplace.database, workplace.settings, ada):
            look(workplace.database, workplace.settings, ada)
    with workplace.database.read() as connection:
        stored = connection.execute(sa.select(quality)).one()
        why = connection.execute(sa.select(person.c.state_why).where(person.c.id == ada)).scalar()
    assert stored.gold_share == 0.5
    assert "0% of the pairs" in why
    assert "gold items as expected" in why


def test_repeats_carry_the_earlier_ranking_and_retired_gold_does_not_count(make_workplace):
    app = create_app(make_workplace(repeat_share=0.5, pause={"enabled": False}))
    ada, owner = sign_in(app), sign_in(app, "owner", "Olga")
    gold = [{**row, "prompt": f"G{i}?", "gold": {"ranks": [1, 2, 3]}} for i, row in enumerate(item_rows(2))]
    add(app.state.workplace, rows=gold, name="gold", purpose="gold")
    add(app.state.workplace, 60)
    rng = random.Random(2)
    for number in range(45):
        assert send(ada, take(ada), f"submit-{number}", ranks=rng.sample((1, 2, 3), 3)).status_code == 200
    with app.state.workplace.database.read() as connection:
        found = judgments(connection)
    assert sum(bool(one.earlier) for one in found) >= 5
    rows = owner.get("/api/gold").json()["gold"]
    assert owner.post(f"/api/gold/{rows[0]['gold']}/retire").status_code == 200
    assert owner.get("/api/gold").json()["gold"][0]["retired"]
    assert error(owner.post(f"/api/gold/{'0' * 16}/retire"), 404)


@BOTH
def test_items_on_which_all_agree_become_gold_when_an_owner_confirms(workplace):
    app = create_app(workplace)
    owner = sign_in(app, "owner", "Olga")
    team = [sign_in(app, name=name) for name in ("Ada", "Bob", "Cy")]
    add(workplace, 2, quota=3)
    for client in team:
        for number in range(2):
            task = take(client)
            places = {f"Answer {k}": k + 1 for k in range(3)}
            ranks = [places[one["text"][:8]] for one in task["responses"]]
            if number and client is team[0]:
                ranks = [4 - rank for rank in ranks]
            assert send(client, task, f"submit-{number}", ranks=ranks).status_code == 200
    (suggested,) = owner.get("/api/gold").json()["suggestions"]
    assert suggested["labels"] == 3
    body = {"item": suggested["item"], "explanation": "0 is best"}
    assert owner.post("/api/gold", json=body).status_code == 200
    assert error(owner.post("/api/gold", json=body), 404)
    (row,) = owner.get("/api/gold").json()["gold"]
    assert (row["ranks"], row["explanation"]) == ([1, 2, 3], "0 is best")
    figures = owner.get("/api/quality").json()
    assert (figures["rankings"], figures["labelers"]) == (6, 3)
    assert figures["agreement"]["n"] == 2
    assert next(iter(figures["policies"]["bradley_terry"]["strengths"])) == "tiny ppo-0"


@BOTH
def test_reviewers_see_contradicted_labels_first_and_a_rejected_one_is_not_exported(app_with_review):
    app, ada, bob = app_with_review
    reviewer, owner = sign_in(app, "reviewer", "Rita"), sign_in(app, "owner", "Olga")
    queue = reviewer.get("/api/reviews").json()["labels"]
    assert len(queue) == 2
    assert queue[0]["reason"] == "labelers of this item agree in 0% of its pairs"
    assert not {"Ada", "Bob"} & set(json.dumps(queue).split('"'))
    body = {"label": queue[0]["label"], "verdict": "reject"}
    assert error(reviewer.post("/api/reviews", json=body), 422)["key"] == "note"
    assert reviewer.post("/api/reviews", json={**body, "note": "read again"}).status_code == 200
    assert reviewer.post("/api/reviews", json={**body, "note": "read again"}).status_code == 200
    other = {"label": queue[1]["label"], "verdict": "accept"}
    assert reviewer.post("/api/reviews", json=other).status_code == 200
    assert reviewer.get("/api/reviews").json()["labels"] == []
    assert len(owner.get("/api/export").text.splitlines()) == 1
    notes = [row["reviews"] for client in (ada, bob) for row in client.get("/api/labels").json()["labels"]]
    assert [{"verdict": "reject", "note": "read again", "score": None}] in notes


@pytest.fixture
def app_with_review(workplace):
    app = create_app(workplace)
    ada, bob = sign_in(app), sign_in(app, name="Bob")
    add(workplace, 1, quota=2)
    for client, flip in ((ada, False), (bob, True)):
        task = take(client)
        ranks = [1 + int(one["text"][7]) for one in task["responses"]]
        if flip:
            ranks = [4 - rank for rank in ranks]
        assert send(client, task, ranks=ranks).status_code == 200
    return app, ada, bob


@pytest.mark.parametrize("count", [15, pytest.param(100, marks=pytest.mark.slow)])
def test_places_of_a_policy_are_uniform_and_preferring_the_first_shown_favours_nobody(workplace, count):
    """20 assignments of three policies for each person, as the store deals them out; labelers who always
    prefer what is shown first."""
    rng, shown, wins, orders = random.Random(16), np.zeros((3, 3), int), 0, 20 * count
    add(workplace, 20, quota=count)
    everybody = [admit(workplace, f"P{i}") for i in range(count)]
    with workplace.database.write() as connection:
        for who in everybody:
            for number in range(20):
                task = assignments.next_assignment(connection, workplace.settings, who, ("rank",), rng)
                places = [int(one["text"][7]) for one in task["responses"]]
                for place, policy in enumerate(places):
                    shown[policy, place] += 1
                wins += places.index(0) < places.index(1)
                given = Submission.model_validate(submission(task))
                labels.submit(connection, who, task["assignment"], f"key-{number}", given)
    assert shown.sum() == 3 * orders
    p = min(chisquare(row).pvalue for row in shown)
    rate = wilson(wins, orders)
    print(f"places of three policies over {orders} assignments: least p {p:.2f}; win rate {rate}")
    assert p > 0.01
    assert abs(rate.value - 0.5) <= (0.03 if count == 100 else 0.08)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_team_over_http_pauses_its_careless_people(make_workplace):
    """Five honest people, one who clicks at random, one who keeps the order shown, one who prefers the
    longest; the careless ones are paused within 400 items each."""
    workplace = make_workplace(gold_share=0.05, calibration_share=0.0)
    rows = [{**row, "prompt": f"Q{i}?"} for i, row in enumerate(item_rows(400, 6))]
    for row in rows:
        row["responses"] = [
            f"{text} {'word ' * random.Random(text).randint(0, 40)}" for text in row["responses"]
        ]
    add(workplace, rows=rows, quota=8)
    with serving(workplace) as url:
        team = make_people(url, 5, seed=1)
        for number, behaviour in enumerate(("random", "first", "longest")):
            team += make_people(url, 1, seed=10 + number, behaviour=behaviour)
        gold = []
        for i in range(120):
            row = {**rows[i], "prompt": f"Gold {i}?"}
            worth = [team[0].quality(row["prompt"], text) for text in row["responses"]]
            row["gold"] = {"ranks": (np.argsort(np.argsort(-np.array(worth))) + 1).tolist()}
            gold.append(row)
        add(workplace, rows=gold, name="gold", purpose="gold")
        admit_all(workplace, team)
        for one in team:
            one.work(120 if one.behaviour == "honest" else 400)
    for one in team:
        print(f"{one.behaviour}: {len(one.acknowledged)} labels; {one.stopped}")
        assert bool(one.stopped) == (one.behaviour != "honest")
    with workplace.database.read() as connection:
        held = export(connection).held_back
    careless = [one for one in team if one.behaviour != "honest"]
    assert 0 < held <= sum(len(one.acknowledged) for one in careless)
