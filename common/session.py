"""Whether other hosts see the same run directory as the driver.

Every start of a driver writes RUN/session.json with a new random id. A process on another host that reads
another id there, or no file, has a folder of its own at that path: an empty one, or a copy of an
earlier time, whose models and data it would use.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from pathlib import Path

from common.errors import StartError
from common.files import read_json, write_json
from common.run_paths import RunPaths

SESSION = "HERO_SESSION"
"""Environment variable of actors: the id, a space and the run directory."""
PATIENCE_S = 10.0
"""How long a network file system may take until a new file is seen on every host."""


def begin_session(root: Path) -> str:
    """Writes a new id to the run directory and returns it."""
    session = secrets.token_hex(16)
    write_json(RunPaths(root).session, {"id": session, "host": socket.gethostname()})
    return session


def difference(root: Path, session: str, patience_s: float = PATIENCE_S) -> str | None:
    """In what this host's folder `root` differs from that of the driver's session; None if it is the
    same folder."""
    path = RunPaths(root).session
    deadline = time.monotonic() + patience_s
    while True:
        if root.is_dir():
            os.listdir(root)  # has NFS ask its server again for names that it did not find
        seen = (read_json(path) or {}).get("id")
        if seen == session:
            return None
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    if seen:
        return "another copy is at that path"
    return "the folder there is another one" if root.is_dir() else "there is no such folder"


def refusal(root: Path, host: str, found: str) -> str:
    """The message for a host whose folder differs."""
    return (
        f"the run directory {root} is not the same on host {host}: {found}; set run_dir to a folder on a "
        "file system that all hosts of the Ray cluster share, or name those that do in "
        "cluster.layout.learners.hosts"
    )


def sees_run_directory() -> bool:
    """In an actor: whether this host has the run directory of the driver."""
    return _found() is None


def check_session() -> None:
    """In an actor: raises StartError if this host has another run directory than the driver. A node that
    joined later was not there when the driver asked all of them."""
    found = _found()
    if found:
        root = os.environ[SESSION].partition(" ")[2]
        raise StartError(refusal(Path(root), socket.gethostname(), found))


def _found() -> str | None:
    session, _, root = os.environ.get(SESSION, "").partition(" ")
    return difference(Path(root), session) if session else None
