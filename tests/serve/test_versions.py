"""Versions on disk: what is served, what may be promoted, what is kept, and how the pointer moves."""

import json
import shutil

import pytest

from common.errors import UserError
from serve import promotion
from serve.versions import find, keep, kept, point, promotions, resolve, verify


@pytest.fixture
def run(tmp_path):
    model = tmp_path / "ppo" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (tmp_path / "current.json").write_text(json.dumps({"stage": "ppo", "version": 7, "path": "ppo/model"}))
    return tmp_path


@pytest.fixture
def copy(files, tmp_path):
    """The run of the conftest, to be changed."""
    return shutil.copytree(files.root, tmp_path / "copy")


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


def test_a_model_is_found_by_version_by_stage_and_by_folder(files):
    assert find(files.root, "ppo-1").model == files.root / "versions" / "ppo-1"
    assert find(files.root, "sft").model == files.root / "sft" / "model"
    assert find(files.root, str(files.root / "sft" / "model")).version == "model"
    with pytest.raises(UserError, match=r"neither a version .*ppo-1, ppo-2.* nor one of its stages"):
        find(files.root, "ppo-9")


def test_a_changed_a_missing_and_an_unfitting_file_are_refused(copy):
    versions = copy / "versions"
    verify(versions / "ppo-1", versions / "sft-0")
    with pytest.raises(UserError, match=r"another architecture .*: \[.*\] instead of \[.*\]"):
        verify(versions / "wide-1", versions / "sft-0")
    weights = versions / "ppo-1" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.unlink()
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"ppo-1/model\.safetensors: missing, or not as it was written"):
        verify(versions / "ppo-1", versions / "sft-0")
    weights.unlink()
    with pytest.raises(UserError, match="missing, or not"):
        promotion.promote(copy, "ppo-1", "why")
    assert resolve(copy).version == "sft-0"


def test_old_versions_go_but_the_served_the_one_before_and_the_pinned_stay(copy):
    point(copy, "ppo-1", who="test", why="")
    for number in (5, 6, 7):
        keep(copy, f"ppo-{number}", copy / "sft" / "model", newest=2, pinned=["wide-1"])
    assert sorted(kept(copy)) == ["ppo-1", "ppo-6", "ppo-7", "sft-0", "wide-1"]


def test_promotion_and_rollback_move_the_pointer_and_are_logged(copy):
    assert promotion.promote(copy, "ppo-2", "better")["to"] == "ppo-2"
    assert promotion.promote(copy, "ppo-1", "even better")["from"] == "ppo-2"
    assert promotion.rollback(copy, "it was not")["to"] == "ppo-2"
    assert resolve(copy).version == "ppo-2"
    assert promotion.rollback(copy, "nor was that")["to"] == "sft-0"  # not ppo-1, which was left for good
    rows = [(p["from"], p["to"], p["why"]) for p in promotions(copy)[1:]]
    assert rows == [
        ("sft-0", "ppo-2", "better"),
        ("ppo-2", "ppo-1", "even better"),
        ("ppo-1", "ppo-2", "it was not"),
        ("ppo-2", "sft-0", "nor was that"),
    ]
    with pytest.raises(UserError, match=r"has no version ppo-9 \(there are: "):
        promotion.promote(copy, "ppo-9", "")
