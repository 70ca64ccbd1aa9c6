"""Fixtures of several modules of learner tests."""

import pytest

from tests.learners import fixtures


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tokenizer, packed corpus, rankings, policy and reward model, as `fixtures.make_files` makes them."""
    path = tmp_path_factory.mktemp("files")
    fixtures.make_files(path)
    return path
