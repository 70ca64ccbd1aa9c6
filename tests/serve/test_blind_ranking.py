"""Blind rankings on the playground, in a real browser, with an endpoint that is only its answers: no model is
needed to see what the page shows."""

import json
import shutil
from pathlib import Path

import pytest

from serve.feedback import Feedback

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on the PATH; install it with `apt-get install chromium`"
)
PAGES = Path("serve/pages")
ADDRESS = "http://playground.test"


def stream(model, count):
    """The events of `count` answers of a model."""
    events = []
    for index in range(count):
        entry = {"token": f"text {index} of it", "logprob": -0.1, "top_logprobs": []}
        choice = {"index": index, "delta": {"content": entry["token"]}, "logprobs": {"content": [entry]}}
        events.append({"choices": [{**choice, "finish_reason": "stop"}], "system_fingerprint": f"{model}-7"})
    events.append({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}})
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"


class Endpoint:
    """Answers what the page asks for; keeps the feedback that it sends."""

    def __init__(self):
        self.feedback = []

    def __call__(self, route):
        path, request = route.request.url.removeprefix(ADDRESS), route.request
        if path == "/playground":
            route.fulfill(body=(PAGES / "playground.html").read_text(), content_type="text/html")
        elif path.startswith("/pages/"):
            route.fulfill(path=PAGES / path.removeprefix("/pages/"))
        elif path == "/v1/models":
            data = [{"id": "hero", "version": "ppo-9"}, {"id": "sft", "version": "sft"}]
            route.fulfill(json={"data": data})
        elif path == "/v1/chat/completions":
            asked = request.post_data_json
            route.fulfill(body=stream(asked["model"], asked.get("n", 1)), content_type="text/event-stream")
        elif path == "/feedback":
            self.feedback.append((request.headers["idempotency-key"], request.post_data_json))
            route.fulfill(json={"stored": "rankings.jsonl"})
        else:
            route.fulfill(status=404)


def test_a_blind_ranking_shows_no_names_and_presets_nothing_until_it_is_sent():
    from playwright.sync_api import sync_playwright

    endpoint, orders = Endpoint(), set()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.route("**/*", endpoint)
        page.goto(f"{ADDRESS}/playground")
        page.wait_for_selector("#other option[value=sft]", state="attached")
        page.select_option("#other", "sft")
        page.locator("#n").fill("2")
        page.get_by_label("Rank blind").check()
        for _ in range(4):
            page.get_by_role("button", name="Run").click()
            page.wait_for_selector("#ranking:not([hidden])")
            assert page.locator(".answer b").all_inner_texts() == [f"Answer {letter}" for letter in "ABCD"]
            shown = page.locator("#answers").inner_text()
            assert not any(name in shown for name in ("hero", "sft", "-7", "tokens", " s"))
            assert page.locator("#answers [title], #answers [data-probability]").count() == 0
            ranks = page.locator(".answer input[type=number]")
            assert [ranks.nth(i).input_value() for i in range(4)] == [""] * 4
            page.get_by_role("button", name="Send ranking").click()
            page.wait_for_selector("#note:has-text('Give every answer a rank')")
            for i in range(4):
                ranks.nth(i).fill(str(i + 1))
            page.get_by_role("button", name="Send ranking").click()
            page.wait_for_selector("#note:has-text('rankings.jsonl')")
            key, sent = endpoint.feedback[-1]
            names = [sent["answers"][answer]["model"] for answer in sent["order"]]
            assert page.locator(".answer b").all_inner_texts() == names, "told once it is sent"
            assert [sent["ranks"][answer] for answer in sent["order"]] == [1, 2, 3, 4]
            assert Feedback(**sent).blind
            assert len(key) == 32
            orders.add(tuple(sent["order"]))
        assert len(orders) > 1, "the order is drawn by chance"
        assert len({key for key, _ in endpoint.feedback}) == 4
        assert not errors
        browser.close()
