"""API keys: random, shown once, stored as SHA-256 hashes, one a line with a name; and the rate
limit of each key.

A plain hash is enough: a key has 256 random bits, so guessing keys and hashing them is hopeless.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from pathlib import Path

from common.errors import UserError


def digest(key: str) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()


def add_key(file: Path, name: str) -> str:
    """Makes a key, adds its hash to the file and returns the key, which cannot be read again.

    Raises UserError if the name is not a word, or has a key in the file already.
    """
    if not name.isprintable() or not name or " " in name:
        raise UserError(f"key name {name!r}: expected a word without spaces")
    if file.exists() and name in ApiKeys(file).names.values():
        raise UserError(
            f"{file}: has a key named {name} already; remove that line first or choose another name"
        )
    key = f"hero-{secrets.token_urlsafe(32)}"
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a", encoding="utf-8") as keys:
        # Before the hash is written: names and hashes are only for the owner.
        file.chmod(0o600)
        keys.write(f"{name} {digest(key)}\n")
    return key


class ApiKeys:
    """The keys of a file. The file is read again when it has changed, so a removed line revokes its
    key at once."""

    def __init__(self, file: Path) -> None:
        """Raises UserError if the file is missing or malformed."""
        self.file = file
        self.names: dict[str, str] = {}
        """Names of the keys by the hash of the key."""
        self._modified_ns = -1
        self._reload()

    def name(self, key: str) -> str | None:
        """The name of this key; None if it is not in the file."""
        self._reload()
        key_hash = digest(key)
        for stored_hash, name in self.names.items():
            # In constant time, so that the duration tells a client nothing about stored hashes.
            if hmac.compare_digest(stored_hash, key_hash):
                return name
        return None

    def _reload(self) -> None:
        if not self.file.is_file():
            raise UserError(
                f"{self.file}: no such file of API keys; make one with `hero key {self.file} NAME`"
            )
        modified_ns = self.file.stat().st_mtime_ns
        if modified_ns == self._modified_ns:
            return
        names = {}
        for number, line in enumerate(self.file.read_text(encoding="utf-8").splitlines(), 1):
            name, _, stored_hash = line.partition(" ")
            if len(stored_hash) != 64:
                raise UserError(
                    f"{self.file}, line {number}: expected `NAME SHA256`; make keys with `hero key`"
                )
            names[stored_hash] = name
        self.names, self._modified_ns = names, modified_ns


class RateLimit:
    """A token bucket for each name. It fills at `per_minute` and holds a minute's worth, but at
    least one request."""

    def __init__(self, per_minute: float) -> None:
        self.per_second = per_minute / 60
        self.capacity = max(1.0, per_minute)
        self._buckets: dict[str, tuple[float, float]] = {}
        """(requests in the bucket, when that was so) by name."""

    def wait(self, name: str) -> float:
        """Takes one request out of the bucket and returns 0, or the seconds after which there will
        be one."""
        now = time.monotonic()
        level, updated = self._buckets.get(name, (self.capacity, now))
        level = min(self.capacity, level + (now - updated) * self.per_second)
        if level >= 1:
            self._buckets[name] = (level - 1, now)
            return 0.0
        self._buckets[name] = (level, now)
        return (1 - level) / self.per_second
