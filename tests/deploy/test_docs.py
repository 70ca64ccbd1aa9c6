"""The page on GPUs: the files that it names are there."""

import re

import pytest

from tests.deploy.files import CONFIG_NAME, ROOT

PAGES = ("docs/gpu.md",)


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
