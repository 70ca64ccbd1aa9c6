"""The page on GPUs: its links and the files that it names are there."""

import re

import pytest

from tests.deploy.files import CONFIG_NAME, ROOT

PAGES = ("docs/gpu.md",)


def anchors(path):
    """Of the headings of a Markdown page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_pages_and_headings(name):
    page = ROOT / name
    links = re.findall(r"\]\(([^)]+)\)", page.read_text())
    assert links
    for link in links:
        if link.startswith("https://"):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target) if target else page
        assert path.exists(), link
        assert not anchor or anchor in anchors(path), link


@pytest.mark.parametrize("name", PAGES)
def test_files_that_are_named_exist(name):
    text = (ROOT / name).read_text()
    named = [
        *CONFIG_NAME.findall(text),
        *re.findall(r"`((?:tests|cluster|learners|actors)/[\w/]+\.py)`", text),
    ]
    assert named
    for path in named:
        assert (ROOT / path).exists(), path
