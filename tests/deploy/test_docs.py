"""The pages on clusters and GPUs: their commands are those of the program, their links lead somewhere."""

import re

import pytest

from tests.deploy.files import CONFIG_NAME, ROOT
from tests.deploy.test_launchers import hero_arguments, hero_commands

PAGES = ("docs/cluster.md", "docs/gpu.md")
LINK = re.compile(r"\]\(([^)]+)\)")


def anchors(path):
    """Of the headings of a Markdown page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_to_pages_and_headings():
    links = [(ROOT / name, link) for name in PAGES for link in LINK.findall((ROOT / name).read_text())]
    assert len(links) >= 10
    for page, link in links:
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


def test_commands_are_those_of_the_program():
    commands = hero_commands("\n".join((ROOT / name).read_text() for name in PAGES))
    assert len(commands) >= 5
    for command in commands:
        assert hero_arguments(command), command
