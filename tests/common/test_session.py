"""Another folder at the path of the run directory is noticed on the host that has it."""

import shutil

import pytest

from common.errors import StartError
from common.session import SESSION, begin_session, check_session, difference


def test_the_same_folder_is_recognised_and_others_are_described(tmp_path):
    run = tmp_path / "run"
    first = begin_session(run)
    assert difference(run, first) is None
    shutil.copytree(run, tmp_path / "copy")
    (tmp_path / "empty").mkdir()
    second = begin_session(run)  # a copy of the folder has the id of an earlier start
    assert difference(run, second) is None
    assert difference(tmp_path / "copy", second, 0) == "another copy is at that path"
    assert difference(tmp_path / "empty", second, 0) == "the folder there is another one"
    assert difference(tmp_path / "nowhere", second, 0) == "there is no such folder"


def test_an_actor_on_a_host_with_another_folder_does_not_start(tmp_path, monkeypatch):
    session = begin_session(tmp_path / "run")
    monkeypatch.setenv(SESSION, f"{session} {tmp_path / 'run'}")
    check_session()
    monkeypatch.setenv(SESSION, f"{session} {tmp_path / 'my run'}")
    monkeypatch.setattr("common.session.difference", lambda root, session: difference(root, session, 0))
    with pytest.raises(StartError, match=r"my run is not the same on host .*: there is no such folder; set"):
        check_session()
    monkeypatch.setenv(SESSION, " /nowhere")  # a Ray of the run's own has no session
    check_session()
