"""Writing small files so that a reader, or whoever restarts after a death, finds the old or the new one, never half."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import UserError


def write_text(path: Path, text: str, mode: int = 0o644) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_json(path: Path, value: Any, mode: int = 0o644) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n", mode)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Adds a line to a JSONL file; several processes may do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file; none if there is no such file."""
    return (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    )


def truncate_partial_line(path: Path) -> None:
    """Cuts off a last line that a death left unfinished, so that rows can be added again."""
    if path.exists() and not (content := path.read_bytes()).endswith(b"\n") and content:
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
