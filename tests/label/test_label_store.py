"""Assignments, labels and people on both databases."""

import threading
import time

import pytest
import sqlalchemy as sa

from label.errors import BadInput, Conflict, Forbidden, NotHere
from label.export import export
from label.store import assignments, labels, people
from label.store.tables import assignment, item, label, person
from label.submission import Submission
from tests.label.conftest import add, admit, item_rows, submission


def take(workplace, who, kinds=("rank", "pair", "demonstrate")):
    with workplace.database.write() as connection:
        rng = assignments.system_rng()
        return assignments.next_assignment(connection, workplace.settings, who, kinds, rng)


def send(workplace, who, task, key="key-1", extra=False, **values):
    given = Submission.model_validate(submission(task, **values))
    with workplace.database.write() as connection:
        return labels.submit(connection, who, task["assignment"], key, given, extra)


def rows(workplace, table, *conditions):
    with workplace.database.read() as connection:
        return connection.execute(sa.select(table).where(*conditions)).all()


def expire(workplace, task):
    with workplace.database.write() as connection:
        own = assignment.c.id == task["assignment"]
        connection.execute(assignment.update().where(own).values(expires=1))


def test_a_label_fills_the_quota_and_the_next_item_is_given(workplace):
    add(workplace, 2)
    ada = admit(workplace)
    first = take(workplace, ada)
    assert take(workplace, ada)["assignment"] == first["assignment"], "an open item is given again"
    send(workplace, ada, first)
    second = take(workplace, ada)
    assert second["prompt"] != first["prompt"]
    send(workplace, ada, second, "key-2")
    assert take(workplace, ada) is None
    assert [(row.labels, row.leases, row.state) for row in rows(workplace, item)] == [(1, 0, "closed")] * 2


def test_nobody_gets_an_item_twice_and_overlap_goes_to_others(workplace):
    add(workplace, 1, quota=2)
    ada, bob, cy = (admit(workplace, name) for name in ("Ada", "Bob", "Cy"))
    send(workplace, ada, take(workplace, ada))
    assert take(workplace, ada) is None
    open_by_bob = take(workplace, bob)
    assert take(workplace, cy) is None, "a lease counts as a label to come"
    send(workplace, bob, open_by_bob)
    assert take(workplace, cy) is None


def test_an_expired_lease_goes_to_the_next_person_and_late_work_is_not_lost(workplace):
    add(workplace, 1)
    ada, bob = admit(workplace), admit(workplace, "Bob")
    late = take(workplace, ada)
    expire(workplace, late)
    send(workplace, bob, take(workplace, bob))
    with pytest.raises(labels.QuotaFilled, match="others have labelled"):
        send(workplace, ada, late)
    stored = send(workplace, ada, late, extra=True)
    assert stored["extra"] is True
    (row,) = rows(workplace, item)
    assert (row.labels, row.leases) == (1, 0)
    with workplace.database.read() as connection:
        assert len(export(connection).rankings) == 1, "an extra label is not exported"


def test_late_work_counts_while_the_quota_is_open(workplace):
    add(workplace, 1, quota=2)
    ada, bob = admit(workplace), admit(workplace, "Bob")
    late = take(workplace, ada)
    expire(workplace, late)
    take(workplace, bob)  # reaps
    assert [row.state for row in rows(workplace, assignment, assignment.c.person == ada)] == ["expired"]
    assert send(workplace, ada, late)["extra"] is False
    (row,) = rows(workplace, item)
    assert (row.labels, row.leases) == (1, 1)


def test_whoever_let_a_lease_expire_gets_the_item_and_the_draft_again(workplace):
    add(workplace, 1)
    ada = admit(workplace)
    task = take(workplace, ada)
    draft = {"comment": "half done", "ranks": {}}
    with workplace.database.write() as connection:
        assignments.save_progress(connection, workplace.settings, ada, task["assignment"], 10, draft)
    expire(workplace, task)
    again = take(workplace, ada)
    assert again["assignment"] == task["assignment"]
    assert again["draft"]["comment"] == "half done"


def test_the_same_key_stores_one_label_and_another_content_is_refused(workplace):
    add(workplace, 1)
    ada = admit(workplace)
    task = take(workplace, ada)
    first = send(workplace, ada, task)
    assert send(workplace, ada, task) == first
    assert send(workplace, ada, task, key="other-tab") == first, "a second tab that says the same"
    with pytest.raises(Conflict, match="change it under your labels"):
        send(workplace, ada, task, key="third-tab", ranks=[3, 2, 1])
    assert len(rows(workplace, label)) == 1
    assert [row.labels for row in rows(workplace, item)] == [1]


def test_an_edit_supersedes_and_undo_gives_the_item_back_with_its_content(workplace):
    add(workplace, 1)
    ada = admit(workplace)
    task = take(workplace, ada)
    old = send(workplace, ada, task)["label"]
    edited = Submission.model_validate(submission(task, ranks=[2, 1, 1]))
    with workplace.database.write() as connection:
        new = labels.replace(connection, ada, old, "key-2", edited)["label"]
        with pytest.raises(Conflict, match="edited or undone"):
            labels.replace(connection, ada, old, "key-3", edited)
    with workplace.database.read() as connection:
        assert [row["ranks"].count(1) for row in export(connection).rankings] == [2]
    with workplace.database.write() as connection:
        labels.undo(connection, workplace.settings, ada, new)
    with workplace.database.read() as connection:
        assert export(connection).rankings == []
    again = take(workplace, ada)
    assert again["assignment"] == task["assignment"]
    assert again["draft"]["ranks"] == dict(zip(edited.ranks, [2, 1, 1], strict=True))
    send(workplace, ada, again, "key-4")
    (row,) = rows(workplace, item)
    assert (row.labels, row.leases, row.state) == (1, 0, "closed")


def test_threads_never_exceed_a_quota(workplace):
    add(workplace, 30, quota=2)
    people_ids = [admit(workplace, f"P{i}") for i in range(6)]
    failures = []

    def work(who):
        try:
            for number in range(30):
                task = take(workplace, who)
                if task is None:
                    return
                if number % 5 == 4:
                    expire(workplace, task)
                    continue
                send(workplace, who, task, f"key-{number}")
        except labels.QuotaFilled:
            pass
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(who,)) for who in people_ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for row in rows(workplace, item):
        submitted = rows(workplace, label, label.c.item == row.id)
        assert row.labels == len(submitted) <= 2
        assert row.labels + row.leases <= row.quota


def test_states_decide_who_works_and_reasons_are_told(workplace):
    add(workplace, 2)
    ada = admit(workplace)
    task = take(workplace, ada)
    with workplace.database.write() as connection:
        people.set_state(connection, ada, "paused", "owner", "look at the guideline again")
    assert [row.leases for row in rows(workplace, item)] == [0, 0]
    with pytest.raises(Forbidden) as refused:
        take(workplace, ada)
    assert refused.value.details["why"] == "look at the guideline again"
    with pytest.raises(Forbidden):
        send(workplace, ada, task)


def test_labels_of_a_paused_person_are_held_back_and_come_again(workplace):
    add(workplace, 1)
    ada = admit(workplace)
    send(workplace, ada, take(workplace, ada))
    for state, exported, held in (("paused", 0, 1), ("admitted", 1, 0), ("left", 1, 0)):
        with workplace.database.write() as connection:
            people.set_state(connection, ada, state, "owner", "why")
            result = export(connection)
        assert (len(result.rankings), result.held_back) == (exported, held), state


@pytest.mark.parametrize("keep", [True, False])
def test_forgetting_leaves_no_name_and_labels_by_choice(workplace, keep):
    add(workplace, 1)
    ada = admit(workplace)
    send(workplace, ada, take(workplace, ada), comment="I, Ada, think so")
    before = rows(workplace, person)[0].pseudonym
    with workplace.database.write() as connection:
        assert people.forget(connection, ada, keep, "owner") == (0 if keep else 1)
        result = export(connection).rankings
    everything = repr([rows(workplace, table) for table in (person, label)])
    assert "Ada" not in everything
    assert before not in everything
    assert len(result) == int(keep)
    assert rows(workplace, item)[0].state == ("closed" if keep else "open")


def test_an_invite_is_used_up_and_a_repeated_request_joins_once(workplace):
    version, _ = workplace.consent()
    with workplace.database.write() as connection:
        code = people.create_invite(connection, "labeler", "training", uses=1)
        given = people.Joining(code, "Ada", version, key="key-1")
        first, _ = people.join(connection, workplace.settings, version, given)
        again, token = people.join(connection, workplace.settings, version, given)
        assert again == first
        assert people.by_session(connection, token).name == "Ada"
        with pytest.raises(Forbidden, match="used up"):
            people.join(connection, workplace.settings, version, people.Joining(code, "Bob", version))
        with pytest.raises(Conflict, match="changed"):
            people.join(connection, workplace.settings, version, people.Joining(code, "Bob", "old"))
    assert code not in repr(rows(workplace, sa.table("invite", sa.column("sha256"))))


def test_adding_a_file_again_adds_nothing_and_wrong_rows_are_named(workplace):
    assert add(workplace, 3).added == 3
    again = add(workplace, 4)
    assert (again.added, again.known) == (1, 3)
    bad = item_rows(2)
    bad[1]["responses"] = ["only one"]
    with pytest.raises(BadInput, match=r"row 2\.responses"):
        add(workplace, name="second", rows=bad)
    odd = item_rows(1)
    odd[0]["responses"][0] = "half \ud800 and \0"
    assert add(workplace, name="third", rows=odd).replaced == 2


def test_a_response_that_names_its_policy_makes_a_comparison_void(workplace):
    leaking = item_rows(1, responses=2)
    leaking[0]["responses"][1] = "I am PPO-1, ask me."
    added = add(workplace, rows=leaking, kind="pair", purpose="ab")
    assert (added.added, added.leaks) == (0, 1)
    assert take(workplace, admit(workplace)) is None


def test_time_at_work_never_exceeds_the_time_that_passed(workplace):
    add(workplace, 1)
    ada = admit(workplace)
    task = take(workplace, ada)
    time.sleep(0.05)
    send(workplace, ada, task, active_ms=10**9)
    (row,) = rows(workplace, label)
    assert row.active_ms <= row.wall_ms + assignments.ACTIVE_SLACK_MS


def test_limits_of_a_person_and_of_a_day(make_workplace):
    workplace = make_workplace(quota_per_person=2, daily_max=1)
    add(workplace, 3)
    ada = admit(workplace)
    send(workplace, ada, take(workplace, ada))
    with pytest.raises(Forbidden, match="go on tomorrow"):
        take(workplace, ada)
    with workplace.database.write() as connection:
        connection.execute(label.update().values(submitted=label.c.submitted - assignments.DAY_MS))
    send(workplace, ada, take(workplace, ada), "key-2")
    with pytest.raises(Forbidden, match="all of your 2"):
        take(workplace, ada)


def test_a_new_guideline_is_read_before_the_next_item(workplace):
    from label.store import guidelines

    add(workplace, 1)
    ada = admit(workplace)
    with workplace.database.write() as connection:
        version = guidelines.publish(connection, "rank", "New rules.", "owner")
        assert guidelines.publish(connection, "rank", "New rules.", "owner") == version
    with pytest.raises(Forbidden, match="read and acknowledge"):
        take(workplace, ada)
    with workplace.database.write() as connection:
        guidelines.acknowledge(connection, ada, version)
    task = take(workplace, ada)
    assert task["guideline"] == version


def test_gold_calibration_and_repeated_items_look_alike_and_are_not_exported(make_workplace):
    gold = item_rows(1)
    gold[0] |= {"prompt": "Gold?", "gold": {"ranks": [1, 2, 2], "explanation": "because"}}
    shares = {"gold_share": 0.2, "calibration_share": 0.2, "repeat_share": 0.3}
    workplace = make_workplace(**shares)
    add(workplace, 60)
    add(workplace, rows=gold, name="gold", purpose="gold")
    calibration = [{**row, "prompt": f"Shared {i}?"} for i, row in enumerate(item_rows(2))]
    add(workplace, rows=calibration, name="shared", purpose="calibration")
    ada = admit(workplace)
    keys, prompts = set(), []
    for number in range(60):
        task = take(workplace, ada)
        keys.add(tuple(task))
        prompts.append(task["prompt"])
        send(workplace, ada, task, f"key-{number}")
    assert len(keys) == 1
    assert {"Gold?", "Shared 0?", "Shared 1?"} <= set(prompts)
    assert len(set(prompts)) < len(prompts), "some are repeated"
    with workplace.database.read() as connection:
        exported = [row["prompt"] for row in export(connection).rankings]
    assert len(set(exported)) == len(exported)
    assert not {"Gold?", "Shared 0?"} & set(exported)


def test_other_peoples_work_is_nothing_that_is_there(workplace):
    add(workplace, 1)
    ada, bob = admit(workplace), admit(workplace, "Bob")
    task = take(workplace, ada)
    with pytest.raises(NotHere):
        send(workplace, bob, task)
    stored = send(workplace, ada, task)["label"]
    with workplace.database.write() as connection, pytest.raises(NotHere):
        labels.undo(connection, workplace.settings, bob, stored)
