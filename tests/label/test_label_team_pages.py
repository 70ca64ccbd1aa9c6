"""Pages of people in screening, of reviewers and of owners in a real browser."""

import pytest

from common.files import append_row, write_json
from common.stop_request import stop_request
from label.export import export
from label.monitoring import figures_of, store_figures
from label.store import assignments, guidelines, labels, people
from label.submission import Submission
from tests.label.conftest import add, submission
from tests.label.test_label_pages import (  # noqa: F401 (fixtures)
    CHROMIUM,
    browser,
    context,
    fresh,
    place,
    shot,
    sign_in,
    violations,
)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on the PATH; install it with `apt-get install chromium`"
)


@pytest.fixture
def open_page(context, fresh):  # noqa: F811
    """Opens a path as a person of a role; checks that no script failed, axe, and a phone's width."""
    errors = []

    def opened(path, role="owner", name="Olga", is_admitted=True):
        context.clear_cookies()
        sign_in(fresh, context, name, role, is_admitted)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(path)
        page.wait_for_selector("#content > *")
        return page

    yield opened
    assert not errors


def check(page, name):
    assert violations(page) == {}, name
    shot(page, f"label-{name}")
    page.set_viewport_size({"width": 390, "height": 780})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
    assert violations(page) == {}, name
    page.set_viewport_size({"width": 1280, "height": 900})


def test_the_questionnaire_is_answered_one_question_a_page_with_the_keyboard(open_page, fresh):  # noqa: F811
    page = open_page("/", "labeler", "Ada", is_admitted=False)
    page.get_by_role("link", name="Go to the questions").click()
    page.wait_for_selector("text=Question 1 of 64")
    check(page, "screen-read")
    page.get_by_role("button", name="Answer", exact=True).click()
    page.wait_for_selector("text=Give an answer first.")
    for number in range(5):
        page.wait_for_selector(f"text=Question {number + 1} of 64")
        page.get_by_role("radio").first.press("Space")
        page.keyboard.press("Enter")
    page.wait_for_selector("text=Question 6 of 64")
    page.get_by_role("radio", name="Not sensitive").check()
    check(page, "screen-flag")
    page.get_by_role("button", name="Answer", exact=True).click()
    page.wait_for_selector("text=Question 7 of 64")
    page.reload()
    page.wait_for_selector("text=Question 7 of 64")


def test_an_owner_sees_reasons_and_decides(open_page, context, fresh):  # noqa: F811
    add(fresh, 2, "owner", quota=3)
    sign_in(fresh, context, "Waiting Wanda", is_admitted=False)
    paused = sign_in(fresh, context, "Paused Paul")
    with fresh.database.write() as connection:
        people.set_state(connection, paused, "paused", "system", "the same ranking in 100% of items")
    page = open_page("/people")
    page.wait_for_selector("text=0 of 64 questions answered.")
    check(page, "people")
    card = page.get_by_role("article", name="Paused Paul")
    assert "the same ranking in 100% of items" in card.inner_text()
    card.get_by_role("button", name="Admit").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Admit").click()
    dialog.get_by_text("Say why; the person is told.").wait_for()
    assert violations(page) == {}
    dialog.get_by_label("Reason").fill("we talked")
    dialog.get_by_role("button", name="Admit").click()
    page.get_by_role("row", name="Paused Paul").wait_for()
    page.get_by_role("row", name="Paused Paul").get_by_role("button", name="History").click()
    dialog.get_by_text("we talked").wait_for()
    check(page, "history")
    dialog.get_by_role("button", name="Close").click()
    page.get_by_role("button", name="Make an invite link").click()
    page.wait_for_selector("text=/join#")


def test_batches_quality_and_guidelines(open_page, fresh):  # noqa: F811
    add(fresh, 2, "progress")
    page = open_page("/batches")
    page.get_by_role("button", name="Close progress").click()
    page.get_by_role("button", name="Open progress").wait_for()
    check(page, "batches")
    page.goto("/quality")
    page.wait_for_selector("text=Krippendorff's α of pairs, ordinal")
    check(page, "quality")
    with fresh.database.write() as connection:
        text = guidelines.newest(connection, "demonstrate").text_md
    page.goto("/guidelines#kind=demonstrate")
    page.get_by_text("Write a new version").click()
    page.locator("#text").fill(f"{text}\n- Never shout.")
    page.get_by_role("button", name="Publish").click()
    page.wait_for_selector("text=+ - Never shout.")
    check(page, "guidelines")


def contradict(workplace, tab):
    """Two people who rank the same items in opposite ways, with the figures of a look at each."""
    rng, settings = assignments.system_rng(), workplace.settings
    for name, flip in (("Forward Fay", False), ("Backward Bo", True)):
        who = sign_in(workplace, tab, name)
        with workplace.database.write() as connection:
            for number in range(3):
                task = assignments.next_assignment(connection, settings, who, ("rank",), rng)
                ranks = [1 + int(one["text"][7]) for one in task["responses"]]
                if flip:
                    ranks = [4 - rank for rank in ranks]
                given = Submission.model_validate(submission(task, ranks))
                labels.submit(connection, who, task["assignment"], f"key-{number}", given)
            store_figures(connection, settings, who, figures_of(connection, settings, who), 3)


def test_a_reviewer_rejects_a_label_with_a_note_and_sees_no_names(open_page, context, fresh):  # noqa: F811
    add(fresh, 3, "contradicted", quota=2)
    contradict(fresh, context)
    page = open_page("/review", "reviewer", "Rita")
    card = page.get_by_role("article", name="Label 1", exact=True)
    card.get_by_text("labelers of this item agree in 0% of its pairs").wait_for()
    check(page, "review")
    assert "Fay" not in page.content()
    assert page.get_by_role("link", name="People").count() == 0
    card.get_by_role("button", name="Reject").click()
    page.wait_for_selector("text=say why, for the labeler")
    card.get_by_label("Note to the labeler").fill("read it again")
    card.get_by_role("button", name="Reject").click()
    page.wait_for_selector("text=Labels (5)")
    assert export_of(fresh).rejected == 1
    page = open_page("/people")
    page.get_by_role("row", name="Forward Fay").wait_for()
    check(page, "people-figures")
    page.goto("/quality")
    page.wait_for_selector("text=tiny ppo-0")
    check(page, "quality-figures")


def export_of(workplace):
    with workplace.database.read() as connection:
        return export(connection)


def test_rounds_stand_side_by_side_and_anybody_who_labels_can_stop_training(open_page, fresh):  # noqa: F811
    run = fresh.paths
    estimate = {"value": 0.61, "low": 0.55, "high": 0.67, "n": 300, "why": ""}
    guards = [{"name": "KL", "passed": True, "evidence": "1.00 nats"}]
    guards.append({"name": "alarms", "passed": False, "evidence": "active at the end: length"})
    gate = {"win_rate": estimate, "against": "sft-0", "guards": guards, "length_controlled": estimate}
    first = {"round": 1, "state": "held", "policies": ["sft-0"], "gate": gate, "decision": "alarms: length"}
    write_json(run.round(1).state, first)
    off = "fisher is off: chosen prompts gained nothing"
    second = {"round": 2, "state": "labeling", "policies": ["round-1", "sft-0"]}
    write_json(run.round(2).state, {**second, "select": {"method": "random", "why": off}})
    append_row(run.rounds_log, {"key": "2:labeling:stalled"})
    add(fresh, 3, "round-002", round=2)
    page = open_page("/rounds", "reviewer", "Rita")
    page.get_by_role("row", name="Blind win rate").get_by_text("61.0% (55.0% to 67.0%) of 300").wait_for()
    page.get_by_text("round-002: 0 labels, 3 of 3 items open").wait_for()
    page.get_by_text("✗ fails: alarms").wait_for()
    page.get_by_role("row", name="Prompts chosen").get_by_text(f"random; {off}").wait_for()
    page.get_by_text("labeling, stalled: the deadline has passed").wait_for()
    check(page, "rounds")
    page = open_page("/", "labeler", "Ada")
    page.get_by_role("button", name="Stop training", exact=True).click()
    dialog = page.get_by_role("dialog", name="Stop training")
    dialog.get_by_role("button", name="Stop training now").click()
    dialog.get_by_text("Say why.").wait_for()
    assert violations(page) == {}
    assert stop_request(run) is None
    dialog.get_by_label("Why").fill("It insults people.")
    dialog.get_by_role("button", name="Stop training now").click()
    page.get_by_text("Training was stopped: It insults people.").wait_for()
    assert stop_request(run)["why"] == "It insults people."
    # PPO of the round looks at its own directory.
    assert run.round(2).stop.exists()
    assert violations(page) == {}
