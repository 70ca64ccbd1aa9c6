"""A versioned set of files in an object store or a folder, by a URL of fsspec (s3://…, file://…).

    objects/ab/abcdef…      content of a file, named by its SHA-256; written once, never changed
    index/00000012.json     all files of one moment: size and SHA-256 by path
    latest.json             number and SHA-256 of the newest index, with the id of the run

Written in this order. A store promises that one object appears whole, so whoever reads latest.json
gets all files of one moment, whatever interrupts an upload: objects of an interrupted one are not
referred to by anything.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec

from common.errors import UserError, one_line
from common.files import PARTIAL_SUFFIX

CHUNK = 8 << 20
KEPT_INDEXES = 2
"""A reader that has just read latest.json finds its objects until two newer moments are complete."""


class ObjectStore:
    """The files at `url`; `setting` is the config key that messages name."""

    def __init__(self, url: str, setting: str) -> None:
        self.url, self._setting = url, setting
        try:
            self._files, base = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"{setting}={url}: {one_line(error)}; expected a URL like s3://BUCKET/FOLDER or "
                "file:///FOLDER, and the package of its protocol (s3fs for s3) installed"
            ) from None
        self._base = str(base).rstrip("/")
        protocol = self._files.protocol
        self._is_local = "file" in ([protocol] if isinstance(protocol, str) else protocol)

    def latest(self) -> dict[str, Any] | None:
        """{"run", "number", "sha256"} of the newest moment; None if there is none."""
        try:
            latest: dict[str, Any] = json.loads(self._files.cat_file(f"{self._base}/latest.json"))
        except FileNotFoundError:
            return None
        return latest

    def read_index(self, latest: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """{"size", "sha256"} by path. Raises UserError if it is missing or not what was written."""
        name = _index_name(latest["number"])
        try:
            content = self._files.cat_file(f"{self._base}/{name}")
        except FileNotFoundError:
            raise self._damaged(name, "is missing") from None
        if hashlib.sha256(content).hexdigest() != latest["sha256"]:
            raise self._damaged(name, "has another content than latest.json says")
        files: dict[str, dict[str, Any]] = json.loads(content)
        return files

    def write_index(self, run: str, number: int, files: dict[str, dict[str, Any]]) -> None:
        """Makes these files the newest moment, then removes what only older moments refer to."""
        content = json.dumps(files, indent=1).encode()
        self._write(_index_name(number), [content])
        latest = {"run": run, "number": number, "sha256": hashlib.sha256(content).hexdigest()}
        self._write("latest.json", [json.dumps(latest).encode()])
        self._remove_old()

    def put(self, digest: str, size: int, chunks: Iterable[bytes]) -> None:
        """Stores a content under its digest, unless it is there."""
        with suppress(FileNotFoundError):
            if self._files.info(f"{self._base}/{_object_name(digest)}")["size"] == size:
                return
        self._write(_object_name(digest), chunks)

    def fetch(self, digest: str, path: Path) -> None:
        """Writes a content to a file. Raises UserError if it is missing or has another digest."""
        name, actual = _object_name(digest), hashlib.sha256()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._files.open(f"{self._base}/{name}", "rb") as source, open(path, "wb") as target:
                while chunk := source.read(CHUNK):
                    actual.update(chunk)
                    target.write(chunk)
        except FileNotFoundError:
            raise self._damaged(name, "is missing") from None
        if actual.hexdigest() != digest:
            raise self._damaged(name, "has another content than its name says")

    def _write(self, name: str, chunks: Iterable[bytes]) -> None:
        path = f"{self._base}/{name}"
        self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
        # A store shows an object when it is complete, a folder shows a file from its first byte on.
        written = f"{path}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}" if self._is_local else path
        try:
            with self._files.open(written, "wb") as target:
                for chunk in chunks:
                    target.write(chunk)
        except BaseException:
            # Leaving the block has completed it, with a part of its content.
            with suppress(FileNotFoundError):
                self._files.rm_file(written)
            raise
        if written != path:
            Path(written).replace(path)

    def _remove_old(self) -> None:
        names = sorted(self._files.find(f"{self._base}/index"))
        used: set[str] = set()
        for name in names[-KEPT_INDEXES:]:
            used.update(entry["sha256"] for entry in json.loads(self._files.cat_file(name)).values())
        outdated = names[:-KEPT_INDEXES]
        for path in self._files.find(f"{self._base}/objects"):
            if path.rpartition("/")[2] not in used:
                outdated.append(path)
        for path in outdated:
            with suppress(FileNotFoundError):
                self._files.rm_file(path)

    def _damaged(self, name: str, what: str) -> UserError:
        return UserError(
            f"{self._setting}={self.url}: {name} {what}; put it back, or start without {self._setting}"
        )


def _index_name(number: int) -> str:
    return f"index/{number:08d}.json"


def _object_name(digest: str) -> str:
    return f"objects/{digest[:2]}/{digest}"
