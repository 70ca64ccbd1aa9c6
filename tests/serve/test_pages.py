"""The pages in a real browser: what a person clicks, what the page shows, what the files get."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from common.files import read_jsonl

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


@pytest.fixture
def page(browser, endpoint):
    context = browser.new_context(viewport={"width": 1280, "height": 860}, base_url=endpoint.url)
    context.set_default_timeout(30_000)
    page = context.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" and not refused(m.text) else None)
    page.goto("/")
    page.get_by_label("API key").fill(endpoint.key)  # asked for once, then kept in the browser
    page.get_by_role("button", name="Use key").click()
    page.wait_for_selector("#model option", state="attached")
    yield page
    context.close()
    assert not errors


def refused(text: str) -> bool:
    """Whether the browser reports an answer that a test provokes."""
    return "status of 401" in text or "status of 400" in text


def shot(page, name: str) -> None:
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"{name}.png")


def send(page, text: str) -> None:
    """Sends a message and waits for the whole answer."""
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")
    page.wait_for_selector(".turn.assistant:last-child .soft:has-text('tokens')")


def test_chat_streams_stops_regenerates_edits_and_remembers(page):
    send(page, "What is the capital of France?")
    assert page.locator(".turn.user").inner_text().startswith("What is the capital of France?")
    assert page.locator(".turn.assistant .answer").inner_text().strip()
    assert "hero · " in page.locator(".turn.assistant").inner_text()
    shot(page, "chat")
    page.get_by_role("button", name="Regenerate").click()
    page.wait_for_selector(".turn.assistant .soft:has-text('tokens')")
    assert page.locator(".turn").count() == 2
    page.reload()
    page.wait_for_selector(".turn.assistant")  # kept in the browser
    page.get_by_role("button", name="Edit").first.click()
    assert page.get_by_label("Message", exact=True).input_value() == "What is the capital of France?"
    assert page.locator(".turn").count() == 0
    page.get_by_label("Message", exact=True).fill("Count without end")
    page.evaluate("document.querySelector('#send').click(); document.querySelector('#stop').click()")
    page.wait_for_selector("#send:visible")
    page.get_by_role("button", name="New conversation").click()
    assert page.locator(".turn").count() == 0
    assert page.locator("#history button").count() >= 1


def test_an_empty_conversation_shows_the_version_and_prompts_to_try(page):
    page.wait_for_selector(".examples button")
    assert page.locator("#model option").first.inner_text().startswith("hero · ")
    assert "version " in page.locator(".empty").inner_text()
    shot(page, "chat-empty")
    example = page.locator(".examples button").first.inner_text()
    page.locator(".examples button").first.click()
    page.wait_for_selector(".turn.assistant .soft:has-text('tokens')")
    assert page.locator(".turn.user .text").inner_text() == example


def test_the_keyboard_sends_breaks_lines_and_stops(page):
    message = page.get_by_label("Message", exact=True)
    low = message.bounding_box()["height"]
    message.press_sequentially("First line")
    page.keyboard.press("Shift+Enter")
    message.press_sequentially("second line")
    assert message.input_value() == "First line\nsecond line"
    assert message.bounding_box()["height"] > low
    page.keyboard.press("Enter")
    page.wait_for_selector("#stop:visible, .turn.assistant .meta")
    page.keyboard.press("Escape")
    page.wait_for_selector("#send:visible")
    assert message.input_value() == ""


def test_an_error_of_the_endpoint_is_shown_where_the_answer_would_be(page):
    page.get_by_label("Message", exact=True).fill("word " * 2000)
    page.keyboard.press("Enter")
    page.wait_for_selector(".turn.error")
    assert "maximum" in page.locator(".turn.error").inner_text()
    assert page.get_by_role("button", name="Try again").is_visible()
    page.locator(".turn.user").get_by_role("button", name="Edit").click()
    assert page.locator(".turn.error").count() == 0
    send(page, "Short")


def test_the_composer_stays_at_the_bottom_of_a_long_conversation(page):
    page.set_viewport_size({"width": 1280, "height": 360})
    for _ in range(2):
        send(page, "All.\n" * 6)
    assert page.evaluate("scroller.scrollHeight > scroller.clientHeight")
    box, height = page.locator("#composer").bounding_box(), page.viewport_size["height"]
    assert height - 40 < box["y"] + box["height"] <= height
    assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")
    last = page.locator(".turn").last.bounding_box()
    assert last["y"] + last["height"] <= box["y"] + 1, "the newest turn is above the composer, in sight"


def test_markdown_is_rendered_without_html_injection(page):
    html = page.evaluate(
        """async () => {
            const { markdown } = await import("/pages/common.js");
            const box = document.createElement("div");
            box.append(markdown("# Hi\\n**bold** `a<b` [ok](https://x.org) [no](javascript:alert(1)) " +
                "<img src=x onerror=alert(1)>\\n\\n- one\\n- two\\n```\\n<script>x</script>\\n```"));
            return box.innerHTML;
        }"""
    )
    assert "<strong>bold</strong>" in html
    assert "<code>a&lt;b</code>" in html
    assert '<a href="https://x.org"' in html
    assert "<li>two</li>" in html
    assert "<img" not in html
    assert "<script>" not in html
    assert 'href="javascript' not in html


def test_a_playground_ranking_is_data_of_the_next_round(page, endpoint):
    page.goto("/playground")
    page.wait_for_selector("#other option[value=sft]", state="attached")
    page.get_by_role("button", name="Nucleus").click()
    assert page.locator("#top_p").input_value() == "0.9"
    page.select_option("#other", "sft")
    page.locator("#n").fill("2")
    page.locator("#max_tokens").fill("24")
    page.locator("#seed").fill("7")
    page.get_by_role("button", name="Run").click()
    page.wait_for_selector("#ranking:not([hidden])")
    assert page.locator(".answer").count() == 4
    token = page.locator(".answer .token").nth(3)
    token.focus()
    assert "%" in page.locator("#probability").inner_text()
    page.get_by_role("button", name="View code").click()
    assert '"top_p":0.9' in page.locator("#curl").inner_text()
    assert "client.chat.completions.create(" in page.locator("#python").inner_text()
    shot(page, "playground")
    for i, rank in enumerate((2, 1, 3, 3)):
        page.locator(".answer input[type=number]").nth(i).fill(str(rank))
    page.get_by_label("may be used for training").last.check()
    page.get_by_role("button", name="Send ranking").click()
    page.wait_for_selector("#note:has-text('rankings.jsonl')")
    row = read_jsonl(endpoint.root / "feedback" / "rankings.jsonl")[-1]
    assert row["ranks"] == [2, 1, 3, 3]
    assert row["prompt"] == "What is the capital of France?"
    assert [p["model"] for p in row["policy"]] == ["hero", "hero", "sft", "sft"]
    assert row["policy"][2]["version"] == "sft"
    assert row["decoding"][0] == {"top_p": 0.9, "max_tokens": 24, "n": 2, "seed": 7}
    assert row["consent"] is True


def test_the_shown_code_gives_the_shown_answer(page, endpoint):
    page.goto("/playground")
    page.wait_for_selector("#model option", state="attached")
    page.get_by_role("button", name="Greedy").click()
    page.locator("#max_tokens").fill("8")
    page.get_by_role("button", name="Run").click()
    page.wait_for_selector(".answer .soft:has-text(' in all')")
    shown = "".join(page.locator(".answer .token:not(.special)").all_inner_texts())
    page.get_by_role("button", name="View code").click()
    command = page.locator("#curl").inner_text()
    env = {**os.environ, "OPENAI_API_KEY": endpoint.key}
    output = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env=env, timeout=60
    ).stdout
    texts = shown, json.loads(output)["choices"][0]["message"]["content"]
    # Half a character, which random weights do write, is shown in another way by itself than in a text.
    assert len({"".join(c for c in text if c.isascii() and c.isalnum()) for text in texts}) == 1


def test_a_thumb_with_a_comment_is_stored(page, endpoint):
    send(page, "Hello!")
    page.get_by_role("button", name="Thumb down").click()
    page.get_by_label("Comment").fill("That is no greeting.")
    page.get_by_role("button", name="Send feedback").click()
    page.wait_for_selector("text=Thank you, stored.")
    row = (endpoint.root / "feedback" / "other.jsonl").read_text().splitlines()[-1]
    assert '"thumb": "down"' in row
    assert "That is no greeting." in row


def test_status_shows_versions_and_replicas(page):
    page.goto("/status")
    page.wait_for_selector("#replicas tbody tr:nth-child(2)")
    assert page.locator("#promotions tbody tr").count() >= 1
    assert "requests" in page.locator("#figures").inner_text()
    shot(page, "status")


def test_pages_work_on_a_phone_and_by_keyboard(browser, endpoint):
    phone = {"width": 390, "height": 780}
    context = browser.new_context(viewport=phone, base_url=endpoint.url, color_scheme="dark", has_touch=True)
    context.set_default_timeout(30_000)
    context.add_init_script(f"localStorage.setItem('hero-key', '\"{endpoint.key}\"')")
    page = context.new_page()
    for path in ("/", "/playground", "/status"):
        page.goto(path)
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (
            f"{path} is wider than a phone"
        )
    page.goto("/")
    page.wait_for_selector("#model option", state="attached")
    page.keyboard.type("Hi there")  # the message has the focus
    page.keyboard.press("Enter")
    page.wait_for_selector(".turn.assistant .soft:has-text('tokens')")
    shot(page, "phone")
    focused = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        focused.add(page.evaluate("document.activeElement.ariaLabel || document.activeElement.textContent"))
    assert {"Send", "Copy", "Regenerate", "Settings", "Conversations"} <= focused
    page.get_by_role("button", name="Conversations").click()
    assert page.get_by_role("button", name="New conversation").is_visible()
    context.close()
