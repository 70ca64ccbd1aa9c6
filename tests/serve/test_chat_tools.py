"""Tool calls on the chat page, in a real browser. The answers come from the test: no policy of a test is
trained to call tools, and what is tested is the page."""

import json
import shutil
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on the PATH; install it with `apt-get install chromium`"
)
PAGES = Path("serve/pages")
TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
TOOLS = [
    {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
]
FUNCTION = {"name": "add", "arguments": '{"a": 17,'}
CALL = [
    {"delta": {"role": "assistant", "content": ""}},
    {"delta": {"tool_calls": [{"index": 0, "id": "call-1", "type": "function", "function": FUNCTION}]}},
    {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": ' "b": 48}'}}]}},
    {"delta": {}, "finish_reason": "tool_calls"},
]
WORDS = [{"delta": {"content": "It is 65."}}, {"delta": {}, "finish_reason": "stop"}]


def events(choices):
    chunks = [{"choices": [choice], "system_fingerprint": "ppo-9"} for choice in choices]
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


@pytest.fixture
def page_and_requests():
    from playwright.sync_api import sync_playwright

    requests = []

    def answer(route):
        path = route.request.url.removeprefix("http://hero.test").partition("?")[0]
        if path == "/v1/chat/completions":
            requests.append(json.loads(route.request.post_data))
            body = events(WORDS if len(requests) % 2 == 0 else CALL)
            route.fulfill(body=body, content_type="text/event-stream", headers={"x-weight-version": "ppo-9"})
        elif path == "/v1/models":
            route.fulfill(json={"data": [{"id": "hero", "version": "ppo-9"}]})
        elif path == "/prompts.json":
            route.fulfill(json=[])
        else:
            file = PAGES / ("chat.html" if path == "/" else Path(path).name)
            route.fulfill(body=file.read_text(encoding="utf-8"), content_type=TYPES[file.suffix])

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.set_default_timeout(20_000)
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.route("**/*", answer)
        page.goto("http://hero.test/")
        page.wait_for_selector("#model option", state="attached")
        yield page, requests
        browser.close()
    assert not errors


def ask(page, text):
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def test_a_call_is_shown_and_its_result_goes_back(page_and_requests):
    page, requests = page_and_requests
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Tools").fill(json.dumps(TOOLS))
    page.get_by_label("Tools").press("Tab")
    page.get_by_role("button", name="Settings").click()
    ask(page, "What is 17 + 48?")
    page.get_by_text('add({"a": 17, "b": 48})').wait_for()
    page.get_by_label("Result of add").fill("65")
    page.get_by_role("button", name="Give results").click()
    page.get_by_text("It is 65.").wait_for()
    assert [request["tools"] for request in requests] == [TOOLS, TOOLS]
    user, assistant, tool = requests[1]["messages"]
    assert user == {"role": "user", "content": "What is 17 + 48?"}
    assert assistant["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 17, "b": 48}'}
    assert tool == {"role": "tool", "content": "65", "tool_call_id": "call-1"}
    assert page.get_by_label("Result of add").count() == 0


def test_tools_that_are_no_list_are_refused_on_the_page(page_and_requests):
    page, requests = page_and_requests
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Tools").fill("add")
    page.get_by_role("button", name="Settings").click()
    ask(page, "Hello")
    page.get_by_text("Tools: expected a JSON list").wait_for()
    assert requests == []
