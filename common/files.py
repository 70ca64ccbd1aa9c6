"""Reading and writing the files of a run.

Every file and folder is written beside its final path and renamed, so a reader, or a process that
restarts after a crash, sees the old content or the new one and never a part. `atomic_path` is the
only place that does this.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from common.errors import UserError

# Ends the name of a file or folder that is being written. Readers never match it.
PARTIAL_SUFFIX = ".partial"


@contextmanager
def atomic_path(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path`, which the block writes a file or a folder
    to.

    When the block ends, the result is renamed to `path` and replaces what was there. When the block
    raises, the result is removed and `path` stays as it was. The temporary name ends in `.partial`:
    a writer that chooses its format, or appends a suffix, by the name of the file (numpy.savez)
    needs an open file instead.

    `durable` flushes the content to the disk first, so that the new file is complete after a power
    failure too. Without it the file is complete after any crash of processes; choose this for
    content that a restart writes again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")
    remove(partial)
    try:
        yield partial
        # The rename may reach the disk before the content, and a power failure between them leaves
        # an empty file under the final name.
        if durable:
            _flush_to_disk(partial)
        if partial.is_dir():
            # A folder has one writer at a time, and what a killed one left of it may be a whole model.
            for leftover in path.parent.glob(f"{path.name}.*{PARTIAL_SUFFIX}"):
                if leftover != partial:
                    remove(leftover)
            remove(path)  # rename replaces a file, but not a folder with content
        partial.replace(path)
    except BaseException:  # Ctrl-C too
        remove(partial)
        raise


def write_text(path: Path, text: str, mode: int = 0o644) -> None:
    """Replaces the content of a file. `mode` holds from the first byte on, so that secrets are
    never readable."""
    with atomic_path(path) as partial:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)


def to_json(value: Any, indent: int | None = None) -> str:
    """As JSON, also what the user's rows and functions may hold: values of numpy as numbers and lists,
    dates and whatever else as text."""
    return json.dumps(value, indent=indent, default=_json_value)


def _json_value(value: Any) -> Any:
    # Scalars and arrays of numpy and torch have it.
    if callable(getattr(value, "tolist", None)):
        return value.tolist()
    return str(value)


def write_json(path: Path, value: Any, mode: int = 0o644) -> None:
    write_text(path, to_json(value, indent=1) + "\n", mode)


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Replaces the content of a JSONL file by `rows`, one object a line."""
    with atomic_path(path) as partial, open(partial, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(to_json(row) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file; None if there is no such file. Raises UserError if somebody has
    damaged it: this program writes files whole."""
    if not path.exists():
        return None
    return _parse(path.read_text(encoding="utf-8"), str(path))


def append_row(path: Path, row: dict[str, Any], once: str | None = None) -> None:
    """Adds a line to a JSONL file; several processes may do so at once. With `once`, a key of the row, not
    if a line has the same value of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        # A long row is written in several pieces, which could interleave with another process's.
        fcntl.flock(file, fcntl.LOCK_EX)
        if once is not None and _has_line(file, once, row[once]):
            return
        file.write(to_json(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _has_line(file: IO[str], key: str, value: Any) -> bool:
    file.seek(0)
    text = to_json(value)
    return any(text in line and json.loads(line).get(key) == value for line in file)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file; none if there is no such file. Raises UserError as `read_json` does."""
    if not path.exists():
        return []
    with open(path, encoding="utf-8") as file:
        return [_parse(line, f"{path}, line {number}") for number, line in enumerate(file, 1)]


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}: damaged, not JSON ({error.msg} at column {error.colno}); put back what was there, "
            "or remove the file (what it recorded is then done again)"
        ) from None


def truncate_partial_line(path: Path) -> None:
    """Cuts off a last line without a newline, which a crash left, so that rows can be added
    again."""
    if not path.exists():
        return
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)


@contextmanager
def try_lock(path: Path, message: str) -> Iterator[None]:
    """Holds a lock file; raises UserError with `message` if another process holds it."""
    with open(path, "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(message) from None
        yield


def remove(path: Path) -> None:
    """Removes a file, a folder with its content, or a link; nothing if there is none. A folder on which
    a file system is mounted is emptied, and stays with those above it."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    mounts = [folder for folder in (path, *path.rglob("*")) if folder.is_mount()]
    if not mounts:
        shutil.rmtree(path)
        return
    for entry in path.iterdir():
        remove(entry)
    if path not in mounts and not any(path.iterdir()):
        path.rmdir()


def file_sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file in a folder, by its path in it."""
    sizes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            size = size_now(path)
            if size is not None:
                sizes[str(path.relative_to(folder))] = size
    return sizes


def size_now(path: Path) -> int | None:
    """Bytes of a file that another host may have written; None if there is none.

    NFS answers `stat` from a cache for up to a minute, and a missing name likewise. Opening a folder or a
    file has it ask the server.
    """
    try:
        os.listdir(path.parent)
        with open(path, "rb") as file:
            return os.fstat(file.fileno()).st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def _flush_to_disk(path: Path) -> None:
    files = [path]
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file()]
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
