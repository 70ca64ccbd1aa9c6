"""What `hero serve` serves: the run's pointer, or a model folder, or a clear refusal."""

import json

import pytest

from learners.errors import UserError
from serve.versions import resolve


@pytest.fixture
def run(tmp_path):
    model = tmp_path / "ppo" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (tmp_path / "current.json").write_text(json.dumps({"stage": "ppo", "version": 7, "path": "ppo/model"}))
    return tmp_path


def test_a_run_is_its_current_policy(run):
    served = resolve(run)
    assert (served.model, served.version) == (run / "ppo" / "model", "ppo-7")


def test_a_model_folder_is_itself(run):
    assert resolve(run / "ppo" / "model").version == "model"


def test_what_cannot_be_served_is_named(run, tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        resolve(tmp_path / "nothing")
    with pytest.raises(UserError, match="nothing to serve yet"):
        resolve(run / "ppo")
    (run / "ppo" / "model" / "config.json").unlink()
    with pytest.raises(UserError, match="run the ppo stage again"):
        resolve(run)
