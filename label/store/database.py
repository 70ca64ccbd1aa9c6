"""The database of a workplace: one SQLite file, or PostgreSQL by its URL.

SQLite: write-ahead log, synchronous FULL (an acknowledged label survives a power cut), every write in
BEGIN IMMEDIATE, so that no transaction has to upgrade a lock and fails half-way. PostgreSQL: the same
transactions; rows are locked with FOR UPDATE and taken with SKIP LOCKED.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError, OperationalError

from common.errors import UserError
from label.store.screening_tables import metadata
from label.store.tables import MIGRATIONS, SCHEMA_VERSION, event, meta

AnyRow = sa.Row[*tuple[Any, ...]]
"""A row of whatever columns."""
BUSY_TIMEOUT_S = 10
NETWORK_FILE_SYSTEMS = ("nfs", "9p", "cifs", "smb", "fuse", "lustre", "ceph", "gfs", "afs", "beegfs", "gpfs")
_HINT = "put the run on a local disk, or set label.database to a postgresql+psycopg:// URL"


def now_ms() -> int:
    """UTC, milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Database:
    """Transactions on the database of one workplace."""

    def __init__(self, url: str) -> None:
        """Opens it, with its tables made or brought to this version. Raises UserError for a database that
        cannot be used: on a network file system, damaged, of a newer version, or out of reach."""
        try:
            self.url = sa.make_url(url)
        except sa.exc.ArgumentError:
            raise UserError(f"label.database={url}: expected postgresql+psycopg://USER@HOST/NAME") from None
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        options: dict[str, Any] = {"pool_size": 20, "max_overflow": 30}
        if self.is_sqlite:
            file = Path(self.url.database or "")
            refuse_network_file_system(file)
            file.parent.mkdir(parents=True, exist_ok=True)
            options["connect_args"] = {"timeout": BUSY_TIMEOUT_S}
        else:
            options["pool_pre_ping"] = True  # the server may restart while people work
        self.engine = sa.create_engine(self.url, **options)
        # Threads of this process queue here: SQLite's own waiting polls, and lets some wait for long.
        self._turn: Any = nullcontext()
        if self.is_sqlite:
            self._turn = threading.Lock()
            sa.event.listen(self.engine, "connect", _configure_sqlite)
            sa.event.listen(self.engine, "begin", _begin_sqlite)
        self._writer = self.engine.execution_options(sqlite_begin="IMMEDIATE")
        self._prepare()

    @classmethod
    def of_file(cls, file: Path) -> Database:
        return cls(f"sqlite:///{file.absolute()}")

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        with self.engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction that is committed at the end of the block, and not at all if the block raises."""
        with self._turn, self._writer.begin() as connection:
            yield connection

    def close(self) -> None:
        self.engine.dispose()

    def backup(self, target: Path) -> None:
        """A consistent copy of the SQLite file, also while the workplace is in use."""
        if not self.is_sqlite:
            raise UserError("this workplace is on PostgreSQL; back it up with pg_dump")
        if target.exists():
            raise UserError(f"{target} exists; choose another file")
        target.parent.mkdir(parents=True, exist_ok=True)
        source, copy = sqlite3.connect(str(self.url.database)), sqlite3.connect(target)
        try:
            source.backup(copy)
        finally:
            copy.close()
            source.close()

    def _prepare(self) -> None:
        shown = self.url.render_as_string(hide_password=True)
        try:
            with self.write() as connection:
                if not self.is_sqlite:
                    # Several servers may start at once; one makes the tables.
                    connection.exec_driver_sql("SELECT pg_advisory_xact_lock(816)")
                elif (result := connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()) != "ok":
                    raise UserError(f"{shown} is damaged ({result}); {_RESTORE}")
                self._migrate(connection, shown)
        except OperationalError as error:
            raise UserError(f"{shown} cannot be opened: {_first_line(error)}") from None
        except DatabaseError as error:  # "file is not a database"
            raise UserError(f"{shown} is damaged ({_first_line(error)}); {_RESTORE}") from None

    def _migrate(self, connection: sa.Connection, shown: str) -> None:
        version = SCHEMA_VERSION
        if sa.inspect(connection).has_table("meta"):
            stored = sa.select(meta.c.value).where(meta.c.name == "schema_version")
            version = int(connection.execute(stored).scalar_one())
        if version > SCHEMA_VERSION:
            raise UserError(
                f"{shown} was written by a newer version of this program (schema {version}, this one knows "
                f"{SCHEMA_VERSION}); update the program, or {_RESTORE}"
            )
        metadata.create_all(connection)
        for step in range(version + 1, SCHEMA_VERSION + 1):
            for statement in MIGRATIONS[step]:
                connection.exec_driver_sql(statement)
        connection.execute(meta.delete().where(meta.c.name == "schema_version"))
        connection.execute(meta.insert().values(name="schema_version", value=str(SCHEMA_VERSION)))


_RESTORE = "put back a copy made with `hero label backup`"


def record_event(
    connection: sa.Connection, what: str, person: str | None, subject: str | None = None, **detail: Any
) -> None:
    """Adds a line to the log of what happened."""
    values = {"time": now_ms(), "person": person, "what": what, "subject": subject, "detail": detail}
    connection.execute(event.insert().values(values))


def is_disk_full(error: DatabaseError) -> bool:
    """Whether a write failed because the disk is full."""
    message = str(error.orig).lower()
    return "disk is full" in message or "no space left" in message


def refuse_network_file_system(file: Path, mounts: Path = Path("/proc/self/mountinfo")) -> None:
    """Raises UserError where SQLite's locks do not hold: the file would be damaged."""
    if not mounts.exists():  # not Linux
        return
    folder, best, kind = str(file.absolute()), "", ""
    for line in mounts.read_text().splitlines():
        fields = line.split()
        place, file_system = fields[4], fields[fields.index("-") + 1]
        if (folder + "/").startswith(place.rstrip("/") + "/") and len(place) >= len(best):
            best, kind = place, file_system
    if kind.startswith(NETWORK_FILE_SYSTEMS):
        raise UserError(
            f"{file}: SQLite's locks do not hold on a network file system ({kind} at {best}); {_HINT}"
        )


def _configure_sqlite(connection: Any, _: Any) -> None:
    # SQLAlchemy's "begin" event below begins transactions, not the driver.
    connection.isolation_level = None
    for setting in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {setting}")


def _begin_sqlite(connection: sa.Connection) -> None:
    mode = connection.get_execution_options().get("sqlite_begin", "DEFERRED")
    connection.exec_driver_sql(f"BEGIN {mode}")


def _first_line(error: DatabaseError) -> str:
    return str(error.orig).strip().splitlines()[0]
