"""The copy of a run directory in an object store: complete moments only, verified when they are restored."""

import json
import shutil
import threading

import fsspec
import pytest

from cluster.run.checkpoints import Checkpoints
from cluster.run.mirror import SMALL, Mirror, mirrored
from common.errors import UserError
from common.files import append_row, read_jsonl, write_text
from common.run_paths import RunPaths
from tests.runs import output_tail, start, wait_for_step, wait_until_finished


@pytest.fixture(params=["memory", "file"])
def url(request, tmp_path):
    if request.param == "file":
        yield f"file://{tmp_path / 'store'}"
        return
    yield f"memory://{tmp_path.name}"
    fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)


@pytest.fixture
def lines():
    return []


def make_run(root):
    paths = RunPaths(root)
    write_text(paths.config, "name: run\n")
    append_row(paths.metrics, {"step": 1})
    write_text(paths.endpoint, "secret")
    checkpoints = Checkpoints(paths.stage("ppo").checkpoints, save_shard)
    for step in (1, 2):
        checkpoints.save(step)
    checkpoints.commit(1, {"kl_coef": 0.5})
    return paths


def save_shard(folder):
    folder.mkdir(parents=True)
    (folder / "shard.pt").write_bytes(b"x" * (SMALL + 7))


def copy(url, root, lines):
    with mirrored(url, root, lines.append):
        pass


def test_an_empty_directory_continues_from_the_store(url, tmp_path, lines):
    paths = make_run(tmp_path / "run")
    copy(url, paths.root, lines)
    other = tmp_path / "elsewhere"
    with mirrored(url, other, lines.append):
        restored = RunPaths(other)
        assert read_jsonl(restored.metrics) == [{"step": 1}]
        checkpoints = Checkpoints(restored.stage("ppo").checkpoints, save_shard)
        assert checkpoints.latest() == {"step": 1, "kl_coef": 0.5}
        assert not checkpoints.path(2).exists()  # never committed
        assert not restored.endpoint.exists()
        append_row(restored.metrics, {"step": 2})
    assert lines == [f"{other}: restored from cluster.mirror={url}"]
    # The first directory is behind now; continuing there would give a second history.
    with pytest.raises(UserError, match=r"is ahead of .*run: the run went on elsewhere"):
        copy(url, paths.root, lines)
    shutil.rmtree(paths.root)
    copy(url, paths.root, lines)
    assert read_jsonl(paths.metrics) == [{"step": 1}, {"step": 2}]


def test_the_store_of_another_run_is_refused(url, tmp_path, lines):
    copy(url, make_run(tmp_path / "run").root, lines)
    with pytest.raises(UserError, match=r"holds another run than .*give each run a URL of its own"):
        copy(url, make_run(tmp_path / "other").root, lines)


def test_an_interrupted_upload_is_never_taken(url, tmp_path, lines, monkeypatch):
    paths = make_run(tmp_path / "run")
    copy(url, paths.root, lines)
    mirror = Mirror(url, paths.root, lines.append)
    append_row(paths.metrics, {"step": 2})

    def full(*_):
        raise OSError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(mirror._store, "write_index", full)
        mirror.snapshot()
        mirror.close()
    assert "the last copy failed (OSError: no room)" in lines[-1]
    Mirror(url, tmp_path / "restored", lines.append).restore()
    assert read_jsonl(RunPaths(tmp_path / "restored").metrics) == [{"step": 1}]


def test_a_snapshot_is_of_its_moment_whatever_happens_to_the_files(url, tmp_path, lines, monkeypatch):
    paths = make_run(tmp_path / "run")
    mirror, may_begin = Mirror(url, paths.root, lines.append), threading.Event()
    upload = mirror._upload
    monkeypatch.setattr(mirror, "_upload", lambda files: may_begin.wait(30) and upload(files))
    mirror.snapshot()
    shutil.rmtree(paths.stage("ppo").checkpoints)
    append_row(paths.metrics, {"step": 2})
    may_begin.set()
    mirror.close()
    Mirror(url, tmp_path / "restored", lines.append).restore()
    restored = RunPaths(tmp_path / "restored")
    assert Checkpoints(restored.stage("ppo").checkpoints, save_shard).latest() is not None
    assert read_jsonl(restored.metrics) == [{"step": 1}]
    assert not lines


@pytest.mark.parametrize("damage", ["object", "index", "gone"])
def test_a_damaged_store_is_refused(tmp_path, lines, damage):
    store = tmp_path / "store"
    copy(f"file://{store}", make_run(tmp_path / "run").root, lines)
    largest = max((store / "objects").rglob("*"), key=lambda path: path.stat().st_size)
    damaged = next((store / "index").iterdir()) if damage == "index" else largest
    if damage == "gone":
        damaged.unlink()
    else:
        damaged.write_bytes(b"y" + damaged.read_bytes()[1:])
    with pytest.raises(UserError, match=rf"{damaged.name} (is missing|has another content than)"):
        copy(f"file://{store}", tmp_path / "restored", lines)
    assert not RunPaths(tmp_path / "restored").config.exists()


def test_what_no_moment_refers_to_is_removed(tmp_path, lines):
    store, paths = tmp_path / "store", make_run(tmp_path / "run")
    for step in range(5):
        write_text(paths.stage("ppo").folder / "big.txt", f"{step}" * 9)
        copy(f"file://{store}", paths.root, lines)
    assert [path.name for path in sorted((store / "index").iterdir())] == ["00000004.json", "00000005.json"]
    texts = {path.read_bytes() for path in (store / "objects").rglob("*") if path.is_file()}
    assert {text for text in texts if len(text) == 9} == {b"3" * 9, b"4" * 9}
    assert json.loads((store / "latest.json").read_text())["number"] == 5


def test_a_protocol_without_its_package_is_the_users_to_install(tmp_path, lines):
    with pytest.raises(UserError, match=r"cluster.mirror=nothing://x: .*expected a URL like s3://"):
        Mirror("nothing://x", tmp_path, lines.append)


@pytest.mark.timeout(300)
def test_a_run_whose_directory_is_lost_continues_from_the_mirror(tmp_path):
    settings = [
        "stages=[pretrain]",
        "pretrain.steps=12",
        "pretrain.checkpoint_every=3",
        "quickstart.documents=600",
        "learners.ranks=1",
        f"cluster.mirror=file://{tmp_path / 'store'}",
    ]
    root = tmp_path / "run"
    process = start(root, *settings)
    wait_for_step(process, root, "pretrain", 7)
    process.kill()
    process.wait()
    shutil.rmtree(root)
    wait_until_finished(start(root, *settings), root)
    assert f"{root}: restored from cluster.mirror=file://" in output_tail(root)
    steps = [row["step"] for row in read_jsonl(RunPaths(root).metrics) if "loss/train" in row]
    assert steps == sorted(steps)
    assert steps[-1] == 12
    index = sorted((tmp_path / "store" / "index").iterdir())[-1]
    assert "pretrain/done.json" in json.loads(index.read_text())
