"""A copy of the run directory in an object store (`cluster.mirror`), for a driver whose disk does not
outlive it.

`RunDirectory` calls `snapshot` after each commit (a checkpoint, a finished stage, a stored version), and
`hero rounds` after each transition and now and then while people label. It returns at once, and a thread
copies; of several moments that wait it takes the newest. A driver that starts in an empty run directory calls
`restore`.
"""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from cluster.run.checkpoints import MANIFEST
from cluster.run.object_store import CHUNK, ObjectStore
from common.errors import UserError, one_line
from common.files import PARTIAL_SUFFIX, read_json, remove, write_json
from common.run_paths import RunPaths

SMALL = 1 << 20
"""Files up to this size are read at the snapshot; larger ones are held open and read by the thread."""
NOT_COPIED = (
    *("lock", "session.json", "scale.json", "endpoint.json", "promotions.lock", "mirror.json"),
    *("judge_answers.db", "judge_answers.db-journal", "label.db-wal", "label.db-shm"),
)
"""Of this host or this moment only; endpoint.json holds a secret, and scoring actors write to the
database. That of the labels is copied as SQLite copies it, with what is in its log."""
FOLDERS_NOT_COPIED = ("logs", "wandb", "weights", "export", "folds")


@dataclass
class OpenFile:
    """A file of a snapshot, which can be read although it has been replaced or removed since."""

    name: str
    content: IO[bytes]
    size: int
    """Bytes at the snapshot: logs grow meanwhile."""
    state: tuple[int, int, int]
    """Inode, size, time of change: equal for equal content."""

    def chunks(self) -> Iterator[bytes]:
        """Raises OSError if the file has been cut since."""
        self.content.seek(0)
        rest = self.size
        while rest:
            chunk = self.content.read(min(rest, CHUNK))
            if not chunk:
                raise OSError(f"{self.name} is shorter than it was")
            rest -= len(chunk)
            yield chunk


class Mirror:
    """The copy at `url` of the run in `root`. `report` prints a line."""

    def __init__(self, url: str, root: Path, report: Callable[[str], None]) -> None:
        self.url, self.root, self._report = url, root, report
        self._store = ObjectStore(url, "cluster.mirror")
        self._record = RunPaths(root).mirror
        self._database = RunPaths(root).label_database.name
        self._digests: dict[tuple[int, int, int], str] = {}
        self._pending: list[OpenFile] | None = None
        self._condition = threading.Condition()
        self._is_closing = False
        self._thread: threading.Thread | None = None

    def restore(self) -> bool:
        """Fills the run directory from the store if it is empty; returns whether it did.

        Raises UserError if both hold a run and they are not the same, if the store's is ahead, or if
        the store is damaged.
        """
        latest = self._store.latest()
        if latest is None:
            return False
        if RunPaths(self.root).config.exists():
            self._check_own(latest)
            return False
        index = self._store.read_index(latest)
        fetched = self.root / f"restore{PARTIAL_SUFFIX}"
        remove(fetched)
        for name, entry in index.items():
            self._store.fetch(entry["sha256"], fetched / name)
        write_json(self._record, {"run": latest["run"], "number": latest["number"]})
        # The config last: without it, the next start restores again.
        for name in sorted(index, key=lambda name: name == "config.yaml"):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (fetched / name).replace(self.root / name)
        remove(fetched)
        return True

    def _check_own(self, latest: dict[str, Any]) -> None:
        own = read_json(self._record) or {}
        if own.get("run") != latest["run"]:
            raise UserError(
                f"cluster.mirror={self.url} holds another run than {self.root}; give each run a URL of "
                "its own"
            )
        if own["number"] < latest["number"]:
            raise UserError(
                f"cluster.mirror={self.url} is ahead of {self.root}: the run went on elsewhere; move that "
                "folder away to continue from the mirror"
            )

    def snapshot(self) -> None:
        """Has the present content of the run directory copied. Called by the driver between two steps,
        when nobody writes anything but logs."""
        try:
            files = list(self._open_files())
        except sqlite3.Error as error:  # people label meanwhile, and the run goes on
            self._report(f"cluster.mirror={self.url}: no copy this time (label.db: {error}); the next may do")
            return
        with self._condition:
            _close(self._pending)
            self._pending = files
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="mirror")
                self._thread.start()
            self._condition.notify_all()

    def close(self) -> None:
        """Waits until the last snapshot is in the store."""
        with self._condition:
            self._is_closing = True
            self._condition.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while True:
            with self._condition:
                while self._pending is None and not self._is_closing:
                    self._condition.wait()
                files, self._pending = self._pending, None
            if files is None:
                return
            try:
                self._upload(files)
            except Exception as error:  # stores raise errors of many kinds, and the run goes on
                what = f"{type(error).__name__}: {one_line(error)}"
                self._report(f"cluster.mirror={self.url}: the last copy failed ({what}); the next may not")
            finally:
                _close(files)

    def _upload(self, files: list[OpenFile]) -> None:
        own = read_json(self._record) or {"run": secrets.token_hex(8), "number": 0}
        index = {}
        for file in files:
            digest = self._digests.get(file.state) or _digest(file)
            self._digests[file.state] = digest
            self._store.put(digest, file.size, file.chunks())
            index[file.name] = {"size": file.size, "sha256": digest}
        number = own["number"] + 1
        # Before the store's: a driver that is killed between the two is ahead of the store, never behind.
        write_json(self._record, {"run": own["run"], "number": number})
        self._store.write_index(own["run"], number, index)

    def _open_files(self) -> Iterator[OpenFile]:
        for folder, folders, names in os.walk(self.root):
            path = Path(folder)
            folders[:] = sorted(name for name in folders if _is_copied(path / name))
            for name in sorted(names):
                if name in NOT_COPIED or name.endswith(PARTIAL_SUFFIX):
                    continue
                # An actor may remove a file of its own between the listing and here.
                with suppress(FileNotFoundError):
                    opened = _open_database if name == self._database else _open
                    yield opened(path / name, str((path / name).relative_to(self.root)))


@contextmanager
def mirrored(url: str | None, root: Path, report: Callable[[str], None]) -> Iterator[Mirror | None]:
    """A mirror for the time of a block, or None without a URL. An empty run directory is first restored
    from it; the block's end is copied too. Raises UserError as `Mirror.restore` does."""
    if url is None:
        yield None
        return
    mirror = Mirror(url, root, report)
    if mirror.restore():
        report(f"{root}: restored from cluster.mirror={url}")
    try:
        yield mirror
        mirror.snapshot()
    finally:
        mirror.close()


def _is_copied(folder: Path) -> bool:
    if folder.name in FOLDERS_NOT_COPIED or folder.name.endswith(PARTIAL_SUFFIX):
        return False
    # A checkpoint that is being written: without its manifest it would be passed over anyway.
    return folder.parent.name != "checkpoints" or (folder / MANIFEST).exists()


def _open(path: Path, name: str) -> OpenFile:
    content: IO[bytes] = open(path, "rb")  # noqa: SIM115 (closed with its snapshot)
    status = os.fstat(content.fileno())
    size = status.st_size
    if size <= SMALL:
        with content:
            data = content.read(size)
        content, size = io.BytesIO(data), len(data)
    return OpenFile(name, content, size, (status.st_ino, size, status.st_mtime_ns))


def _open_database(path: Path, name: str) -> OpenFile:
    """A consistent copy of a SQLite file that others write to, which exists only as long as it is open."""
    copy = path.with_name(path.name + PARTIAL_SUFFIX)
    copy.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    file = _open(copy, name)
    copy.unlink()
    return file


def _digest(file: OpenFile) -> str:
    digest = hashlib.sha256()
    for chunk in file.chunks():
        digest.update(chunk)
    return digest.hexdigest()


def _close(files: list[OpenFile] | None) -> None:
    for file in files or ():
        file.content.close()
