"""The workplace over HTTP: joining, one item from next to export, refusals, roles, blindness."""

import json
import re

import pytest
from fastapi.testclient import TestClient

from label.api.app import create_app
from label.store import people
from label.submission import RESPONSE_FLAGS
from learners.data.records import DemonstrationRecord, RankingRecord
from tests.label.conftest import add, admit, item_rows, submission

IDS = "0123456789abcdef"


@pytest.fixture(params=["sqlite"])
def database_url():
    """The API is tested on SQLite; what differs is below it."""


@pytest.fixture
def app(workplace):
    return create_app(workplace)


def sign_in(app, role="labeler", name="Ada", group="training", is_admitted=True):
    """A client with a session."""
    workplace, client = app.state.workplace, TestClient(app)
    with workplace.database.write() as connection:
        code = people.create_invite(connection, role, group)
    consent = client.get("/api/consent").json()
    body = {"code": code, "name": name, "consent_version": consent["version"], "sensitive_ok": ["hate"]}
    answer = client.post("/api/join", json=body, headers={"idempotency-key": f"join-{name}"})
    assert answer.status_code == 200, answer.text
    client.person = answer.json()["person"]
    if is_admitted and role == "labeler":
        with workplace.database.write() as connection:
            people.set_state(connection, client.person, "admitted", "test", "")
    for kind in ("rank", "pair", "demonstrate"):
        version = client.get("/api/guidelines", params={"kind": kind}).json()["version"]
        assert client.post("/api/guidelines/ack", json={"version": version}).status_code == 200
    return client


def take(client, **body):
    answer = client.post("/api/next", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def send(client, task, key="submit-1", **values):
    path = f"/api/assignments/{task['assignment']}/submit"
    return client.post(path, json=submission(task, **values), headers={"idempotency-key": key})


def error(answer, status):
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def test_one_item_from_invite_to_the_row_that_training_reads(app):
    owner, ada = sign_in(app, "owner", "Olga"), sign_in(app)
    lines = "\n".join(json.dumps(row) for row in item_rows(1))
    query = {"name": "round-1", "kind": "rank", "quota": 1}
    assert owner.post("/api/items", params=query, content=lines).json()["added"] == 1
    assert ada.get("/api/me").json()["waiting"] == {"rank": 1}
    task = take(ada)
    texts = {response["id"]: response["text"] for response in task["responses"]}
    assert ada.post(f"/api/assignments/{task['assignment']}/beat", json={"active_ms": 5}).status_code == 200
    draft = {"content": {"comment": "so far", "active_ms": 5}}
    assert ada.post(f"/api/assignments/{task['assignment']}/draft", json=draft).status_code == 200
    assert take(ada)["draft"]["comment"] == "so far"
    given = submission(task, ranks=[5, 2, 2], prompt_flags=["ambiguous"], confidence=8, comment="clear")
    first = task["responses"][0]["id"]
    given["ratings"][first]["flags"] = ["hallucination", "opinion"]
    path, headers = f"/api/assignments/{task['assignment']}/submit", {"idempotency-key": "submit-1"}
    stored = ada.post(path, json=given, headers=headers)
    assert stored.status_code == 200, stored.text
    assert "gaps" in stored.json()["notes"][0]
    assert ada.post("/api/next", json={}).status_code == 204
    exported = owner.get("/api/export").text
    row = json.loads(exported)
    record = RankingRecord.parse(row)
    by_text = dict(zip(record.responses, record.ranks, strict=True))
    assert by_text == {texts[one]: place for one, place in zip(texts, [2, 1, 1], strict=True)}
    assert [record.responses[place] for place in row["order"]] == list(texts.values())
    assert row["flags"][record.responses.index(texts[first])] == ["hallucination", "opinion"]
    assert row["likert"] is not None
    assert record.policy[2].version == "ppo-2"
    assert record.row["secret_truth"] == 0
    assert row["labeler"].startswith("labeler-")
    assert "Ada" not in exported
    assert {"group", "round", "batch", "item", "label", "active_ms", "guideline", "consent"} <= row.keys()


def test_a_demonstration_is_a_row_that_training_reads(app):
    owner, ada = sign_in(app, "owner", "Olga"), sign_in(app)
    add(app.state.workplace, rows=[{"prompt": "Say hello."}], kind="demonstrate", purpose="demonstrate")
    task = take(ada, kinds=["demonstrate"])
    path, headers = f"/api/assignments/{task['assignment']}/submit", {"idempotency-key": "submit-1"}
    assert error(ada.post(path, json={"text": "  "}, headers=headers), 422)["key"] == "text"
    assert ada.post(path, json={"text": "Hello!"}, headers=headers).status_code == 200
    row = json.loads(owner.get("/api/export", params={"content": "demonstrations"}).text)
    assert DemonstrationRecord.parse(row).messages[-1] == {"role": "assistant", "content": "Hello!"}


def test_strength_is_said_of_the_first_shown_and_exported_of_the_first_response(app):
    owner, ada = sign_in(app, "owner", "Olga"), sign_in(app)
    add(app.state.workplace, 12, responses=2, kind="pair")
    for number in range(12):
        assert send(ada, take(ada), f"submit-{number}", ratings={}, strength=3).status_code == 200
    rows = [json.loads(line) for line in owner.get("/api/export").text.splitlines()]
    assert {row["order"][0] for row in rows} == {0, 1}, "sides are drawn"
    for row in rows:
        assert row["strength"] == (3 if row["ranks"] == [1, 2] else -3)


BAD = [
    ({"ranks": {}}, r"ranks\.[0-9a-f]{16}': give this response a place"),
    ({"ranks": [0, 1, 2]}, r"ranks\.[0-9a-f]{16}': expected a whole number from 1 \(best\), got 0"),
    ({"ranks": [1.5, 1, 2]}, r"ranks\.[0-9a-f]{16}'"),
    ({"ranks": ["1", 1, 2]}, r"ranks\.[0-9a-f]{16}'"),
    ({"ranks": {"0" * 16: 1}}, "no response of this item"),
    ({"likert": 8}, r"ratings\.[0-9a-f]{16}\.likert': input should be less than or equal to 7"),
    ({"likert": 0}, r"ratings\.[0-9a-f]{16}\.likert'"),
    ({"likert": None}, "rate this response from 1 to 7"),
    ({"flags": ["rude"]}, r"ratings\.[0-9a-f]{16}\.flags': unknown flag 'rude'; there are wrong_task"),
    ({"prompt_flags": ["x"]}, "prompt_flags': unknown flag"),
    ({"strength": 2}, "strength': is for items of two responses"),
    ({"all_bad": True, "strength": 2}, "strength': cannot be given with all_bad"),
    ({"comment": "a\0b"}, "comment': has the character NUL"),
    ({"comment": "x" * 100_001}, "comment': is longer than 100 kB"),
    ({"surprise": 1}, "surprise'"),
    ({"confidence": 10}, "confidence'"),
]


def test_a_submission_that_cannot_be_a_label_is_refused_by_its_key(app):
    ada = sign_in(app)
    add(app.state.workplace, 1)
    task = take(ada)
    ids = [response["id"] for response in task["responses"]]
    path, headers = f"/api/assignments/{task['assignment']}/submit", {"idempotency-key": "submit-1"}
    for change, message in BAD:
        given = submission(task)
        for key, value in change.items():
            if key in ("likert", "flags"):
                given["ratings"][ids[0]][key] = value
            elif key == "ranks" and isinstance(value, list):
                given["ranks"] = dict(zip(ids, value, strict=True))
            else:
                given[key] = value
        refusal = error(ada.post(path, json=given, headers=headers), 422)
        assert re.search(message, refusal["message"]), refusal["message"]
    assert send(ada, task).status_code == 200, "nothing was stored of the wrong ones"


def test_half_a_surrogate_pair_and_broken_json_are_refused(app):
    ada = sign_in(app)
    add(app.state.workplace, 1)
    path = f"/api/assignments/{take(ada)['assignment']}/submit"
    headers = {"idempotency-key": "submit-1", "content-type": "application/json"}
    for body in (b'{"comment": "\\ud800"}', b'{"\\ud800": 1}', b"{", b"\xff", b"[" * 5000, b"1" * 2_000_000):
        assert ada.post(path, content=body, headers=headers).status_code in (400, 413, 422)


def test_all_bad_needs_no_places(app):
    owner, ada = sign_in(app, "owner", "Olga"), sign_in(app)
    add(app.state.workplace, 1)
    assert send(ada, take(ada), all_bad=True).status_code == 200
    row = json.loads(owner.get("/api/export").text)
    assert row["all_bad"] is True


def test_late_work_is_kept_as_a_draft_and_offered_as_extra(app):
    ada, bob = sign_in(app), sign_in(app, name="Bob")
    add(app.state.workplace, 1)
    task = take(ada)
    with app.state.workplace.database.write() as connection:
        connection.exec_driver_sql("UPDATE assignment SET expires = 1")
    assert send(bob, take(bob)).status_code == 200
    assert error(send(ada, task, comment="late"), 409)["code"] == "quota_filled"
    with app.state.workplace.database.read() as connection:
        query = "SELECT draft FROM assignment WHERE id = ?"
        draft = connection.exec_driver_sql(query, (task["assignment"],)).scalar()
    assert json.loads(draft)["comment"] == "late"
    path = f"/api/assignments/{task['assignment']}/submit"
    body = {**submission(task), "extra": True}
    assert ada.post(path, json=body, headers={"idempotency-key": "submit-2"}).json()["extra"] is True


def test_what_stops_a_person_says_what_to_do(app):
    ada = sign_in(app, is_admitted=False)
    add(app.state.workplace, 2)
    refusal = error(ada.post("/api/next", json={}), 403)
    assert (refusal["code"], refusal["questions"]) == ("state_screening", 64)
    assert "64 questions come before the first item" in refusal["message"]
    owner = sign_in(app, "owner", "Olga")
    change = {"state": "admitted", "why": "fine"}
    assert owner.post(f"/api/people/{ada.person}/state", json=change).status_code == 200
    task = take(ada)
    version = owner.post("/api/guidelines", json={"kind": "rank", "text": "New."}).json()["version"]
    refusal = error(send(ada, task), 403)
    assert (refusal["code"], refusal["version"]) == ("guideline_unread", version)
    ada.post("/api/guidelines/ack", json={"version": version})
    batch = owner.get("/api/batches").json()["batches"][0]["id"]
    owner.post(f"/api/batches/{batch}/state", json={"state": "closed"})
    assert "closed" in error(send(ada, task), 403)["message"]
    owner.post(f"/api/batches/{batch}/state", json={"state": "open"})
    assert send(ada, task).status_code == 200


def test_pausing_leaving_and_withdrawing_are_up_to_the_person(app):
    ada = sign_in(app)
    add(app.state.workplace, 3)
    send(ada, take(ada))
    assert ada.post("/api/me/pause").json()["state"] == "paused"
    assert error(ada.post("/api/next", json={}), 403)["code"] == "state_paused"
    assert ada.post("/api/me/resume").json()["state"] == "admitted"
    owner = sign_in(app, "owner", "Olga")
    owner.post(f"/api/people/{ada.person}/state", json={"state": "paused", "why": "too fast"})
    assert "ask the owner" in error(ada.post("/api/me/resume"), 422)["message"]
    assert ada.get("/api/me").json()["why"] == "too fast"
    assert ada.post("/api/me/forget", json={"keep_labels": False}).json() == {"voided": 1}
    assert error(ada.get("/api/me"), 401)["code"] == "session"


def test_a_page_of_another_site_changes_nothing(app):
    ada = sign_in(app)
    add(app.state.workplace, 1)
    foreign = {"origin": "https://elsewhere.example"}
    assert error(ada.post("/api/next", json={}, headers=foreign), 403)["code"] == "origin"
    assert ada.post("/api/next", json={}, headers={"origin": "http://testserver"}).status_code == 200
    cookie = ada.cookies.jar.__iter__().__next__()
    assert cookie.has_nonstandard_attr("HttpOnly")
    assert cookie.get_nonstandard_attr("SameSite").lower() == "strict"


def test_every_answer_has_the_security_headers(app):
    client = TestClient(app)
    for path in ("/health", "/api/me", "/nothing"):
        headers = client.get(path).headers
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_too_many_requests_of_one_person_wait(make_workplace):
    app = create_app(make_workplace(requests_per_10_s=12))
    ada = sign_in(app)
    answers = [ada.get("/api/me") for _ in range(12)]
    refusal = error(answers[-1], 429)
    assert 1 <= refusal["retry_after_s"] <= 11
    assert answers[-1].headers["retry-after"]
    assert sign_in(app, name="Bob").get("/api/me").status_code == 200, "others go on"


def test_programs_use_keys(app):
    person = admit(app.state.workplace, "Robo", group="simulated")
    with app.state.workplace.database.write() as connection:
        key = people.create_key(connection, person)
    client = TestClient(app)
    assert client.get("/api/me", headers={"authorization": f"Bearer {key}"}).json()["name"] == "Robo"
    assert error(client.get("/api/me", headers={"authorization": "Bearer x"}), 401)["code"] == "key"


ROLES = ("nobody", "labeler", "reviewer", "owner")
PUBLIC = {"/health", "/api/consent", "/api/join", "/api/openapi.json", "/pages/{name}"}
STAFF = {
    "/api/batches",
    "/api/demonstrations",
    "/api/reviews",
    "/api/quality",
    "/api/rounds",
    "/api/guidelines/versions",
}
OWNER = {
    "/api/people",
    "/api/people/{person}",
    "/api/people/{person}/state",
    "/api/gold",
    "/api/gold/{gold}/retire",
    "/api/events",
    "/api/invites",
    "/api/batches/{batch}/state",
    "/api/items",
    "/api/export",
    ("POST", "/api/guidelines"),
}


def allowed(method, path):
    """Roles that a route is for, as the documentation has them."""
    if path in PUBLIC:
        return ROLES
    if path in OWNER or (method, path) in OWNER:
        return ("owner",)
    if path in STAFF:
        return ("reviewer", "owner")
    return ("labeler", "reviewer", "owner")


def routes(app):
    """(method, path) of every route, also of included routers."""
    for path, methods in app.openapi()["paths"].items():
        for method in methods:
            yield method.upper(), path


def test_every_route_answers_the_roles_that_it_is_for_and_no_others(app):
    clients = {role: sign_in(app, role, role) for role in ROLES[1:]} | {"nobody": TestClient(app)}
    checked = 0
    for method, path in routes(app):
        if path in PUBLIC or path.endswith(("/end", "/leave", "/forget")):
            continue
        for role in ROLES:
            # Without a body: who may ask is told before what is wrong with the request.
            url = re.sub(r"\{\w+\}", "0" * 16, path)
            status = clients[role].request(method, url, json={}).status_code
            expected = role in allowed(method, path)
            assert (status not in (401, 403)) == expected or status == 422, (
                f"{method} {path} {role}: {status}"
            )
            if not expected:
                assert status in (401, 403), f"{method} {path} {role}: {status}"
            checked += 1
    assert checked >= 4 * 18


VALUES = [None, True, -1, 2**63, 1.5, "", "0" * 16, "a\0b", "\ud800", [], [[]], {}, {"x": None}]


def test_no_request_of_any_role_is_an_error_of_the_server(app):
    """Wrong values for every key of every route, and wrong bodies as a whole."""
    clients = [sign_in(app, role, role) for role in ROLES[1:]]
    add(app.state.workplace, 2)
    take(clients[0])
    schemas = app.openapi()["components"]["schemas"]
    asked, number = 0, 0
    for path, methods in app.openapi()["paths"].items():
        if path.endswith(("/end", "/leave", "/forget", "/me/pause")):
            continue
        for method, route in methods.items():
            body = route.get("requestBody", {}).get("content", {}).get("application/json", {})
            name = body.get("schema", {}).get("$ref", "").rpartition("/")[2]
            keys = list(schemas.get(name, {}).get("properties", {}))
            for client in clients:
                bodies = [None, {}]
                for key in keys:
                    number += 1
                    bodies.append({key: VALUES[number % len(VALUES)]})
                bodies.append({key: VALUES[(number + i) % len(VALUES)] for i, key in enumerate(keys)})
                for value in bodies:
                    content = json.dumps(value).encode()
                    url = re.sub(r"\{\w+\}", "0" * 16, path)
                    headers = {"content-type": "application/json", "idempotency-key": f"fuzz-{number:08d}"}
                    answer = client.request(method, url, content=content, headers=headers)
                    assert answer.status_code < 500, f"{method} {path} {value}: {answer.text}"
                    asked += 1
    assert asked > 300


def test_nothing_of_others_can_be_read_or_changed(app):
    ada, bob = sign_in(app), sign_in(app, name="Bob")
    add(app.state.workplace, 2)
    task = take(ada)
    stored = send(ada, task).json()["label"]
    mine = f"/api/assignments/{task['assignment']}"
    for path, body in (
        (f"{mine}/beat", {}),
        (f"{mine}/draft", {"content": {}}),
        (f"{mine}/skip", {"reason": "none"}),
        (f"{mine}/submit", submission(task)),
        (f"/api/labels/{stored}/replace", submission(task)),
        (f"/api/labels/{stored}/void", {}),
    ):
        answer = bob.post(path, json=body, headers={"idempotency-key": "submit-9"})
        assert error(answer, 404)["message"].endswith("not yours"), path
    assert bob.get("/api/labels").json()["labels"] == []
    assert [row["label"] for row in ada.get("/api/labels").json()["labels"]] == [stored]


def test_nothing_that_a_labeler_reads_tells_policy_reward_gold_or_truth(app):
    ada = sign_in(app)
    rows = item_rows(6)
    for row in rows:
        row["gold"] = {"ranks": [1, 2, 3], "explanation": "golden reason"}
    add(app.state.workplace, rows=rows)
    payloads = []
    for number in range(6):
        task = take(ada)
        payloads.append(json.dumps(task))
        payloads.append(send(ada, task, f"submit-{number}").text)
        for path in ("/api/me", "/api/labels", "/api/guidelines", "/api/consent"):
            payloads.append(ada.get(path).text)
    text = "".join(payloads)
    for secret in (
        "ppo-",
        "tiny",
        "secret_truth",
        "golden reason",
        "0.25",
        "temperature",
        '"reward"',
        '"gold"',
    ):
        assert secret not in text, secret
    for word in RESPONSE_FLAGS:
        assert word in text, "the payloads were read at all"
