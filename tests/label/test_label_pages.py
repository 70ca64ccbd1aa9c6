"""The pages of the workplace in a real browser: with the keyboard alone, on a phone, for assistive software,
with two tabs and without a connection."""

import os
import shutil
import threading
import time
from importlib.resources import files
from pathlib import Path

import pytest
import uvicorn

from label.api.app import create_app
from label.config import LabelConfig
from label.export import export
from label.store import guidelines, people
from label.workplace import Workplace
from tests.label.conftest import add, item_rows

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on the PATH; install it with `apt-get install chromium`"
)
SHOTS = os.environ.get("HERO_SCREENSHOTS")  # a folder: screenshots for the documentation


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A workplace that listens on a port; `place.address`."""
    settings = LabelConfig(gold_share=0, calibration_share=0, repeat_share=0, requests_per_10_s=1000)
    workplace = Workplace(tmp_path_factory.mktemp("pages"), settings)
    server = uvicorn.Server(uvicorn.Config(create_app(workplace), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    workplace.address = f"http://127.0.0.1:{port}"
    yield workplace
    server.should_exit = True
    thread.join()
    workplace.database.close()


@pytest.fixture
def fresh(place):
    """The workplace without open items of other tests."""
    with place.database.write() as connection:
        connection.exec_driver_sql("UPDATE batch SET state = 'closed'")
    return place


def sign_in(place, context, name="Ada", role="labeler", is_admitted=True):
    """Signs the browser in as a new person who has read the guidelines; returns the id."""
    version, _ = place.consent()
    with place.database.write() as connection:
        code = people.create_invite(connection, role, "training")
        person, token = people.join(connection, place.settings, version, people.Joining(code, name, version))
        if is_admitted:
            people.set_state(connection, person, "admitted", "test", "")
        for kind in ("rank", "pair", "demonstrate"):
            guidelines.acknowledge(connection, person, guidelines.newest(connection, kind).version)
    context.add_cookies([{"name": "label_session", "value": token, "url": place.address}])
    return person


@pytest.fixture
def context(browser, fresh):
    context = browser.new_context(viewport={"width": 1280, "height": 900}, base_url=fresh.address)
    context.set_default_timeout(20_000)
    yield context
    context.close()


@pytest.fixture
def page(context, fresh):
    context.person = sign_in(fresh, context)
    page = context.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    assert not errors


def shot(page, name):
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"{name}.png")


def exported(place):
    """The rows of the newest batch."""
    with place.database.read() as connection:
        names = [row[0] for row in connection.exec_driver_sql("SELECT name FROM batch WHERE state = 'open'")]
        return export(connection, batches=names).rankings if names else []


def wait_for_rows(place, count):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if len(rows := exported(place)) == count:
            return rows
        time.sleep(0.05)
    raise AssertionError(f"{len(exported(place))} labels, expected {count}")


def violations(page):
    """What axe reports, by rule, with the first element."""
    source = (files("axe_playwright_python") / "axe.min.js").read_text()
    page.evaluate(source)
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    result = page.evaluate("tags => axe.run(document, {runOnly: tags})", tags)
    return {one["id"]: one["nodes"][0]["html"][:200] for one in result["violations"]}


def test_joining_by_an_invite_link(browser, fresh):
    context = browser.new_context(base_url=fresh.address)
    page = context.new_page()
    with fresh.database.write() as connection:
        code = people.create_invite(connection, "labeler", "heldout")
    page.goto(f"/join#{code}")
    page.get_by_label("I have read this and agree").check()
    page.get_by_label("Name").fill("Grace")
    page.get_by_label("Hate and discrimination").check()
    assert violations(page) == {}
    shot(page, "label-join")
    page.get_by_role("button", name="Join").click()
    page.wait_for_selector("text=Grace, known to others as labeler-")
    assert violations(page) == {}
    page.goto(f"/join#{code}x")
    page.get_by_label("I have read this and agree").check()
    page.get_by_label("Name").fill("Mallory")
    page.get_by_role("button", name="Join").click()
    page.wait_for_selector("text=this invite is unknown, used up or expired")
    context.close()


def test_six_responses_are_rated_and_ranked_with_at_most_16_key_presses(page, fresh):
    add(fresh, 1, "six", responses=6)
    page.goto("/task")
    page.wait_for_selector("article.current")
    assert page.locator("input:checked").count() == 0, "nothing is preset"
    pressed = 0

    def press(*keys):
        nonlocal pressed
        for one in keys:
            page.keyboard.press(one)
            pressed += 1 + one.count("+")

    press("7", "6", "2", "5", "5", "1")
    shot(page, "label-rate")
    press("Enter")
    page.wait_for_selector("text=Step 2 of 2")
    assert page.locator("article:visible input[name^=place]:checked").count() == 0, "nothing is preset"
    press("1", "2", "4", "3", "3", "5")
    page.wait_for_selector("text=A > B > D = E > C > F")
    assert "F is now place 5" in page.locator("#live").inner_text()
    assert violations(page) == {}
    shot(page, "label-rank")
    press("Control+Enter")
    assert pressed <= 16
    (row,) = wait_for_rows(fresh, 1)
    assert [row["ranks"][place] for place in row["order"]] == [1, 2, 4, 3, 3, 5]
    assert [row["likert"][place] for place in row["order"]] == [7, 6, 2, 5, 5, 1]
    assert row["active_ms"] > 0
    print(f"six responses: {pressed} key presses")


def test_undo_restores_the_item_with_its_content(page, fresh):
    add(fresh, 1, "undo", responses=2)
    page.goto("/task")
    page.wait_for_selector("article.current")
    page.keyboard.press("5")
    page.keyboard.press("3")
    page.keyboard.press("Enter")
    page.keyboard.press("1")
    page.keyboard.press("2")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".toast")
    wait_for_rows(fresh, 1)
    page.keyboard.press("u")
    page.wait_for_selector("text=Order, best first: A > B")
    assert exported(fresh) == []
    page.keyboard.press("Control+Enter")
    wait_for_rows(fresh, 1)
    page.goto("/mine")
    page.get_by_role("link", name="Change").click()
    page.wait_for_selector("text=Order, best first: A > B")
    page.get_by_role("radio", name="place 2").first.check()
    page.get_by_role("button", name="Save the change").click()
    page.wait_for_url("**/mine")
    (row,) = wait_for_rows(fresh, 1)
    assert row["ranks"] in ([1, 1], [2, 2], [1, 2], [2, 1])
    assert violations(page) == {}


def test_flags_ties_moves_and_all_bad_by_keyboard(page, fresh):
    add(fresh, 1, "flags", responses=3)
    page.goto("/task")
    page.wait_for_selector("article.current")
    for key in ("d", "3", "j", "k", "4", "5", "Enter"):
        page.keyboard.press(key)
    page.wait_for_selector("text=Step 2 of 2")
    page.keyboard.press("2")
    page.keyboard.press("=")
    page.wait_for_selector("text=Order, best first: A = B")
    page.keyboard.press("j")
    page.keyboard.press("Shift+ArrowUp")
    page.wait_for_selector("text=Order, best first: A = B > C")
    page.keyboard.press("Backspace")
    assert page.url.endswith("/task")
    page.keyboard.press("b")
    page.wait_for_selector("text=All are bad.")
    page.keyboard.press("Control+Enter")
    (row,) = wait_for_rows(fresh, 1)
    assert row["all_bad"] is True
    assert row["flags"][row["order"][0]] == ["hallucination"]


def test_a_contradiction_is_asked_about_once(page, fresh):
    add(fresh, 1, "contradiction", responses=2)
    page.goto("/task")
    page.wait_for_selector("article.current")
    for key in ("7", "1", "Enter", "2", "1", "Control+Enter"):
        page.keyboard.press(key)
    page.wait_for_selector("text=You rated A 7 and B 1, but put B before A")
    assert exported(fresh) == []
    page.keyboard.press("Control+Enter")
    wait_for_rows(fresh, 1)


def test_a_comparison_and_a_demonstration(page, fresh):
    add(fresh, 1, "pairs", responses=2, kind="pair")
    page.goto("/task#kind=pair")
    page.wait_for_selector("article")
    assert violations(page) == {}
    shot(page, "label-pair")
    page.keyboard.press("6")
    page.keyboard.press("Control+Enter")
    (row,) = wait_for_rows(fresh, 1)
    first = row["order"][0]
    assert row["ranks"][first] == 2
    assert row["strength"] == (-2 if first == 0 else 2)
    add(fresh, 1, "write", rows=[{"prompt": "Say hello."}], kind="demonstrate", purpose="demonstrate")
    page.goto("/task#kind=demonstrate")
    page.wait_for_selector("#text")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("text=The response is empty")
    page.get_by_label("Your response").fill("Hello, write to ada@example.org!")
    page.wait_for_selector("text=looks like it has an e-mail address")
    assert violations(page) == {}
    page.get_by_label("Your response").fill("Hello!")
    page.wait_for_selector("text=1 words, 6 characters")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("text=Nothing waits for you now")
    with fresh.database.read() as connection:
        assert [row["response"] for row in export(connection).demonstrations] == ["Hello!"]


def test_skipping_guidelines_and_help_by_keyboard(page, fresh):
    add(fresh, 2, "skip")
    page.goto("/task")
    page.wait_for_selector("article.current")
    before = page.locator("section[aria-label=Prompt]").inner_text()
    page.keyboard.press("g")
    page.wait_for_selector("dialog:has-text('Rating and ranking responses')")
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    page.get_by_label("Key: Skip the item").fill("x")
    page.get_by_label("Key: Skip the item").blur()
    assert violations(page) == {}
    shot(page, "label-keys")
    page.keyboard.press("Escape")
    page.keyboard.press("x")
    page.get_by_role("button", name="Not my field").press("Enter")
    page.wait_for_function(
        "before => document.querySelector('section[aria-label=Prompt]')?.innerText !== before", arg=before
    )
    with fresh.database.read() as connection:
        reasons = connection.exec_driver_sql("SELECT skip_reason FROM assignment WHERE state = 'skipped'")
        assert "field" in [row[0] for row in reasons]


def test_a_new_guideline_is_shown_before_the_next_item(page, fresh):
    add(fresh, 1, "guideline")
    with fresh.database.write() as connection:
        guidelines.publish(connection, "rank", "# Newer rules\n\n- be **fair**", "owner")
    page.goto("/task")
    page.wait_for_selector("text=Newer rules")
    page.get_by_role("button", name="I have read this").click()
    page.wait_for_selector("article.current")


def test_two_tabs_store_one_label(page, context, fresh):
    add(fresh, 1, "tabs", responses=2)
    other = context.new_page()
    for tab in (page, other):
        tab.goto("/task")
        tab.wait_for_selector("article.current")
    for tab in (page, other):
        for key in ("4", "4", "Enter", "1", "1", "Control+Enter"):
            tab.keyboard.press(key)
        tab.wait_for_selector("text=Nothing waits for you now")
    assert len(exported(fresh)) == 1


def test_without_a_connection_nothing_is_lost(page, context, fresh):
    add(fresh, 1, "offline", responses=2)
    page.goto("/task")
    page.wait_for_selector("article.current")
    page.keyboard.press("6")
    page.reload()
    page.wait_for_selector("article.current")
    assert page.locator("input[name=quality-0]:checked").get_attribute("value") == "6", "kept in the browser"
    context.set_offline(True)
    page.keyboard.press("j")
    for key in ("2", "Enter", "1", "2", "Control+Enter"):
        page.keyboard.press(key)
    page.wait_for_selector("text=No connection. Your work is kept")
    context.set_offline(False)
    (row,) = wait_for_rows(fresh, 1)
    assert sorted(row["ranks"]) == [1, 2]


def test_texts_of_models_are_shown_as_text(page, fresh):
    rows = item_rows(1)
    rows[0]["prompt"] = [{"role": "user", "content": f"turn {i} \u202e reversed"} for i in range(201)]
    for i in range(1, 200, 2):
        rows[0]["prompt"][i]["role"] = "assistant"
    rows[0]["responses"] = ["<script>alert(1)</script><img src=x onerror=alert(2)>", "x" * 90_000, "fine"]
    add(fresh, rows=rows, name="markup")
    page.on("dialog", lambda dialog: pytest.fail("a script of a response ran"))
    page.goto("/task")
    page.wait_for_selector("text=<script>alert(1)</script>")
    assert page.locator("article img").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("button", name="Show all of response").click()
    page.get_by_role("button", name="Show 197 earlier messages").click()
    assert page.locator(".who").count() == 201
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_pages_work_on_a_phone_and_at_double_size(browser, fresh):
    add(fresh, 2, "phone", responses=4)
    for name, width, height in (("phone", 390, 780), ("zoom", 640, 450)):
        context = browser.new_context(
            viewport={"width": width, "height": height}, base_url=fresh.address, color_scheme="dark"
        )
        sign_in(fresh, context, f"Phone {name}")
        page = context.new_page()
        for path in ("/", "/task", "/mine"):
            page.goto(path)
            page.wait_for_selector("#content > *")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{path} {width}"
            assert violations(page) == {}, path
            shot(page, f"label-{name}{path.replace('/', '-')}")
        context.close()


def test_the_start_page_pauses_and_withdraws(page, fresh):
    add(fresh, 1, "start")
    page.goto("/")
    page.wait_for_selector("text=Rate and rank responses: 1")
    shot(page, "label-start")
    assert violations(page) == {}
    page.get_by_role("button", name="Pause").click()
    page.wait_for_selector("text=you paused yourself")
    page.get_by_role("button", name="Go on").click()
    page.get_by_role("button", name="Leave or withdraw").click()
    page.get_by_role("button", name="make my labels void").click()
    page.wait_for_selector("text=you are not signed in")
