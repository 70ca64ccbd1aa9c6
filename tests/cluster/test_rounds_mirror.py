"""Rounds whose directory is lost go on from `cluster.mirror`."""

import shutil

from common.files import read_json
from common.run_paths import RunPaths
from label.workplace import Workplace, read_settings
from serve.versions import current_policy
from tests.cluster.test_mirror import url  # noqa: F401 (a fixture)
from tests.cluster.test_rounds_labels import send, take, until_people_are_needed, work
from tests.label.conftest import admit

NOT_COMPARED = ("lock", "promotions.lock", "mirror.json", "label.db", "label.db-wal", "label.db-shm")


def content(root):
    files = [path for path in root.rglob("*") if path.is_file() and path.name not in NOT_COMPARED]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def open_place(run):
    return Workplace(run.root, read_settings(run.root))


def test_rounds_and_their_labels_continue_from_the_mirror(tmp_path, url):  # noqa: F811
    run, mirror = RunPaths(tmp_path / "run"), f"cluster.mirror={url}"
    until_people_are_needed(run, mirror)
    place = open_place(run)
    ada = admit(place)
    for _ in range(5):
        send(place, ada, take(place, ada))
    assert "5 of 20 rankings" in until_people_are_needed(run, mirror)
    # After the last copy: lost with the disk. The label before is still in the log of SQLite.
    send(place, ada, take(place, ada))
    before = content(run.root)
    place.database.close()
    shutil.rmtree(run.root)
    assert "5 of 20 rankings" in until_people_are_needed(run, mirror)
    assert content(run.root) == before
    place = open_place(run)
    work(place, ada)
    assert "blind comparisons" in until_people_are_needed(run, mirror)
    work(place, ada)
    assert "round 2: 0 of 20 rankings" in until_people_are_needed(run, mirror)
    place.database.close()
    before = content(run.root)
    shutil.rmtree(run.root)
    assert "round 2: 0 of 20 rankings" in until_people_are_needed(run, mirror)
    assert content(run.root) == before
    # Everything of the finished round: state, exports, models, version and pointer.
    assert read_json(run.round(1).state)["state"] == "promoted"
    assert current_policy(run.root).name == "round-1"
    assert {"rounds/rounds.jsonl", "rounds/001/ppo/model/model.safetensors"} <= before.keys()
    assert {"label/exports/round-001.jsonl", "versions/round-1/manifest.json"} <= before.keys()
