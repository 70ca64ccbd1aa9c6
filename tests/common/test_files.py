"""Files and folders appear complete or not at all; readers and restarts never see a part."""

import datetime
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.files import (
    append_row,
    atomic_path,
    read_json,
    read_jsonl,
    truncate_partial_line,
    try_lock,
    write_json,
    write_jsonl,
    write_text,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write_half(folder, durable):
    with atomic_path(folder, durable) as partial:
        partial.mkdir()
        (partial / "half").write_text(str(1 / 0))


def test_failed_write_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": {(): 1}})
    with pytest.raises(TypeError):
        write_jsonl(path, [{"a": 2}, {"a": {(): 1}}])
    assert read_json(path) == {"a": 1}
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("durable", [True, False])
def test_folder_replaces_the_old_one_only_when_complete(tmp_path, durable):
    folder = tmp_path / "model"
    for content in ("old", "new"):
        with atomic_path(folder, durable) as partial:
            (partial / "sub").mkdir(parents=True)
            (partial / "sub" / content).write_text(content)
    assert names(folder / "sub") == ["new"]
    with pytest.raises(ZeroDivisionError):
        write_half(folder, durable)
    assert names(folder / "sub") == ["new"]
    assert names(tmp_path) == ["model"]


def test_next_folder_removes_what_a_killed_writer_left(tmp_path):
    left = tmp_path / "model.1.partial"
    left.mkdir()
    (left / "half").write_text("half")
    other = tmp_path / "model-2.1.partial"
    other.mkdir()
    with atomic_path(tmp_path / "model") as partial:
        partial.mkdir()
        (partial / "whole").write_text("whole")
    assert names(tmp_path) == ["model", "model-2.1.partial"]
    assert names(tmp_path / "model") == ["whole"]


def test_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    code = (
        "import os, pathlib, sys; from common.files import atomic_path\n"
        "with atomic_path(pathlib.Path(sys.argv[1])) as partial:\n"
        "    partial.write_text('new'); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -9
    assert path.read_text() == "old"


def test_secret_files_have_their_mode(tmp_path):
    write_json(tmp_path / "token.json", {}, mode=0o600)
    assert (tmp_path / "token.json").stat().st_mode & 0o777 == 0o600


def test_jsonl_rows_round_trip_and_a_cut_line_is_removed(tmp_path):
    path = tmp_path / "rows" / "a.jsonl"
    assert read_jsonl(path) == []
    truncate_partial_line(path)
    append_row(path, {"a": "é\u2028"})
    append_row(path, {"a": 2})
    with open(path, "a") as file:
        file.write(json.dumps({"a": 3})[:-2])
    truncate_partial_line(path)
    append_row(path, {"a": 4})
    assert read_jsonl(path) == [{"a": "é\u2028"}, {"a": 2}, {"a": 4}]


def test_second_holder_of_a_lock_is_refused(tmp_path):
    with try_lock(tmp_path / "lock", "busy"):
        with pytest.raises(UserError, match="busy"), try_lock(tmp_path / "lock", "busy"):
            pass
    with try_lock(tmp_path / "lock", "busy"):
        pass


def test_values_of_users_become_json(tmp_path):
    """As rows of Parquet files, `convert` and judges hold them."""
    row = {
        "label": np.int64(3),
        "score": np.float32(0.5),
        "right": np.bool_(True),
        "vector": np.arange(3),
        "tensor": torch.tensor(2),
        "day": datetime.date(2024, 1, 2),
    }
    plain = {"label": 3, "score": 0.5, "right": True, "vector": [0, 1, 2], "tensor": 2, "day": "2024-01-02"}
    write_jsonl(tmp_path / "rows", [row])
    append_row(tmp_path / "rows", row)
    write_json(tmp_path / "one", row)
    assert read_jsonl(tmp_path / "rows") == [plain, plain]
    assert read_json(tmp_path / "one") == plain
