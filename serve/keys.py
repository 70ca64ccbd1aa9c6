"""API keys: random, shown once, kept as SHA-256 hashes, one a line with a name; and how often each may call.

A plain hash is enough: a key has 256 random bits, so nothing can be gained by trying guesses.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from pathlib import Path

from common.errors import UserError


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def add_key(file: Path, name: str) -> str:
    """Makes a key, adds its hash to the file and returns the key: it cannot be read again."""
    if not name.isprintable() or not name or " " in name:
        raise UserError(f"key name {name!r}: expected a word without spaces")
    if file.exists() and name in ApiKeys(file).names.values():
        raise UserError(
            f"{file}: has a key named {name} already; remove that line first or choose another name"
        )
    key = f"hero-{secrets.token_urlsafe(32)}"
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a", encoding="utf-8") as keys:
        file.chmod(0o600)
        keys.write(f"{name} {digest(key)}\n")
    return key


class ApiKeys:
    """The keys of a file; a changed file is read again, so that a removed line ends a key at once."""

    def __init__(self, file: Path) -> None:
        self.file, self._read, self.names = file, -1, {}  # type: ignore[var-annotated]
        self._load()

    def _load(self) -> None:
        if not self.file.is_file():
            raise UserError(
                f"{self.file}: no such file of API keys; make one with `hero key {self.file} NAME`"
            )
        if (changed := self.file.stat().st_mtime_ns) == self._read:
            return
        found = {}
        for number, line in enumerate(self.file.read_text(encoding="utf-8").splitlines(), 1):
            name, _, hashed = line.partition(" ")
            if len(hashed) != 64:
                raise UserError(
                    f"{self.file}, line {number}: expected `NAME SHA256`; make keys with `hero key`"
                )
            found[hashed] = name
        self.names, self._read = found, changed

    def name(self, key: str) -> str | None:
        """Whose key this is; None if it is nobody's."""
        self._load()
        given = digest(key)
        return next((name for hashed, name in self.names.items() if hmac.compare_digest(hashed, given)), None)


class RateLimit:
    """A bucket for each name that fills at `per_minute` and holds a minute's worth (at least one request)."""

    def __init__(self, per_minute: float) -> None:
        self.rate, self.most = per_minute / 60, max(1.0, per_minute)
        self._buckets: dict[str, tuple[float, float]] = {}

    def wait(self, name: str) -> float:
        """Takes one request out of the bucket and returns 0, or the seconds after which there will be one."""
        now = time.monotonic()
        left, then = self._buckets.get(name, (self.most, now))
        left = min(self.most, left + (now - then) * self.rate)
        self._buckets[name] = (left - 1 if left >= 1 else left, now)
        return 0.0 if left >= 1 else (1 - left) / self.rate
