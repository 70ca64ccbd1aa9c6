"""The questionnaire from the first question to the owner's decision, over HTTP."""

import json

import pytest
import yaml

from common.errors import UserError
from label.api.app import create_app
from label.questionnaire import Questionnaire
from label.server import serving
from label.simulate import make_people
from label.simulated_team import screen_all
from tests.label.conftest import BOTH, add, address_of
from tests.label.test_label_api import error, sign_in, take

SMALL = {
    "reading": [{"question": "Ties?", "options": ["never", "when equally good"], "right": 2}],
    "flags": [{"text": f"text {i}", "sensitive": i % 2 == 0} for i in range(4)],
    "rankings": [{"prompt": f"Q{i}", "responses": ["good", "middling", "bad"]} for i in range(2)],
    "demonstrations": [{"prompt": "Say hello."}],
    "topics": ["law"],
}
LIMITS = {"flag_items": 4, "ranking_items": 2, "demonstrations": 1}


@pytest.fixture
def database_url(request):
    return address_of(request)


@pytest.fixture
def app(make_workplace, tmp_path):
    file = tmp_path / "questions.yaml"
    file.write_text(yaml.safe_dump(SMALL))
    return create_app(make_workplace(screening={"questionnaire": str(file), "thresholds": LIMITS}))


def answer_all(client, questionnaire, text="Hello, and welcome!"):
    """Answers everything right; returns all that was served."""
    served, shown = [], client.get("/api/screen").json()
    while shown["next"] is not None:
        question = questionnaire.questions[shown["next"]["id"]]
        value = {"write": text, "topic": 4}.get(question.section, question.right)
        if question.section == "rank":
            places = dict(zip(question.content["responses"], question.right, strict=True))
            value = [places[one] for one in shown["next"]["responses"]]
        body = {"question": question.id, "value": value}
        served.append(json.dumps(shown))
        shown = client.post("/api/screen/answers", json=body).json()
    return served


@BOTH
def test_who_answers_everything_is_proposed_and_an_owner_decides(app):
    ada, owner = sign_in(app, is_admitted=False), sign_in(app, "owner", "Olga")
    reviewers = [sign_in(app, "reviewer", name) for name in ("Rita", "Rob")]
    add(app.state.workplace, 1)
    assert ada.get("/api/me").json()["questions"] == 9
    assert error(ada.post("/api/next", json={}), 403)["questions"] == 9
    served = answer_all(ada, app.state.workplace.questionnaire)
    assert len(served) == 9
    assert '"sensitive"' not in "".join(served)
    refusal = error(ada.post("/api/next", json={}), 403)
    assert (refusal["code"], refusal["questions"]) == ("state_screening", 0)
    assert "owner decides" in refusal["message"]
    (row,) = [one for one in owner.get("/api/people").json()["people"] if one["id"] == ada.person]
    assert row["screening"]["proposal"] == "second look"
    assert row["screening"]["reasons"] == ["demonstrations: 0 of 1 answers"]
    for reviewer in reviewers:
        (waiting,) = reviewer.get("/api/demonstrations").json()["demonstrations"]
        assert "Ada" not in json.dumps(waiting)
        assert reviewer.post("/api/demonstrations", json={"id": waiting["id"], "score": 7}).status_code == 200
        assert reviewer.get("/api/demonstrations").json()["demonstrations"] == []
    one = owner.get(f"/api/people/{ada.person}").json()
    assert one["screening"]["proposal"] == "admit"
    assert one["screening"]["self_assessment"] == {"law": 4}
    assert one["demonstrations"] == [{"prompt": "Say hello.", "text": "Hello, and welcome!"}]
    change = {"state": "admitted", "why": "all reached"}
    assert owner.post(f"/api/people/{ada.person}/state", json=change).status_code == 200
    assert take(ada)["kind"] == "rank"
    decision = owner.get(f"/api/people/{ada.person}").json()["decisions"][0]
    assert (decision["what"], decision["evidence"]["why"]) == ("admitted", "all reached")


def test_an_answer_is_final_and_a_new_attempt_begins_when_an_owner_says_so(app):
    ada, owner = sign_in(app, is_admitted=False), sign_in(app, "owner", "Olga")
    first = ada.get("/api/screen").json()["next"]
    body = {"question": first["id"], "value": 1}
    assert ada.post("/api/screen/answers", json=body).json()["answered"] == 1
    assert ada.post("/api/screen/answers", json=body).json()["answered"] == 1
    assert error(ada.post("/api/screen/answers", json={**body, "value": 2}), 409)["code"] == "answered"
    flag = ada.get("/api/screen").json()["next"]
    for value in ("yes", 1, None, [1]):
        assert error(ada.post("/api/screen/answers", json={"question": flag["id"], "value": value}), 422)
    assert error(ada.post("/api/screen/answers", json={"question": "none", "value": 1}), 404)
    for state in ("rejected", "screening"):
        owner.post(f"/api/people/{ada.person}/state", json={"state": state, "why": "again"})
    assert ada.get("/api/screen").json()["answered"] == 0


def test_a_file_with_a_mistake_is_refused_by_its_key(tmp_path):
    file = tmp_path / "questions.yaml"
    file.write_text(yaml.safe_dump({"flags": [{"text": "x"}]}))
    with pytest.raises(UserError, match=r"flags\.0\.sensitive"):
        Questionnaire.of_file(file)
    with pytest.raises(UserError, match="no such file"):
        Questionnaire.of_file(tmp_path / "none.yaml")


def screen_team(workplace, honest, careless, seed):
    """Numbers of admitted honest and careless people."""
    with serving(workplace) as url:
        teams = [make_people(url, honest, seed)]
        for number, behaviour in enumerate(("random", "first"), 1):
            teams.append(make_people(url, careless, seed + number, behaviour=behaviour))
        everybody = [one for team in teams for one in team]
        admitted = screen_all(workplace, everybody)
    count = sum(one.behaviour == "honest" for one in admitted)
    print(f"admitted: {count} of {honest} honest, {len(admitted) - count} of {2 * careless} careless people")
    return count, len(admitted) - count


@pytest.mark.parametrize("size", [(2, 1), pytest.param((150, 25), marks=pytest.mark.slow)])
def test_simulated_people_answer_the_questionnaire_that_comes_with_the_program(make_workplace, size):
    """150 honest people at an error rate of 0.22, 25 who click at random, 25 who keep the order shown."""
    honest, careless = size
    admitted, wrong = screen_team(make_workplace(), honest, careless, seed=5)
    assert admitted >= 0.94 * honest
    assert wrong == 0
