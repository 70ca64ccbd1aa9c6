"""Names of models: folders, and names of the hub in its cache."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from cluster.fleets.manager import model_name
from common.errors import UserError
from learners.model_paths import cached_folder, model_folder


@pytest.fixture
def snapshot(tmp_path, monkeypatch):
    """The folder of me/tiny in a cache of the hub, which is out of reach."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository, commit = tmp_path / "models--me--tiny", "a" * 40
    folder = repository / "snapshots" / commit
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return folder


def test_hub_name_is_found_in_the_cache(snapshot):
    assert model_folder("me/tiny") == snapshot
    assert cached_folder(Path("me/tiny")) == snapshot


def test_hub_name_that_is_not_in_the_cache_is_one_sentence(snapshot):
    assert cached_folder("me/other") is None
    with pytest.raises(UserError, match="me/other: no such folder") as error:
        model_folder("me/other")
    assert "\n" not in str(error.value)


def test_a_folder_is_itself(snapshot):
    assert model_folder(snapshot) == cached_folder(snapshot) == snapshot


def test_a_hub_name_does_not_become_a_path(snapshot, monkeypatch):
    """Scoring actors get it as the config has it; of a folder they get the whole path."""
    assert model_name(Path("me/tiny")) == "me/tiny"
    monkeypatch.chdir(snapshot.parent)
    assert model_name(Path(snapshot.name)) == str(snapshot.resolve())
